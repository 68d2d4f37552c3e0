//! A container's own streams, which its shim shares with whoever is attached ([`crate::shim::attach`]).

use std::io;
use std::path::Path;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

use super::connection::Gone;
use super::remote_command::{Client, Sizes};
use crate::shim::attach::{Kind, LONGEST_PAYLOAD, header};
use crate::terminal;

/// Carries bytes until the container ends. `None` when the client went away.
pub async fn carry(socket: &Path, client: &mut Client) -> Option<io::Result<()>> {
    let (read, write) = match terminal::connect(socket).await {
        Ok(shim) => shim.into_split(),
        Err(error) => return Some(Err(error)),
    };
    let (stdin, sizes) = (client.stdin.take(), client.sizes.take());
    let client = &*client;
    tokio::select! {
        outcome = output(read, client) => match outcome {
            Ok(()) => Some(Ok(())),
            Err(Trouble::Shim(error)) => Some(Err(error)),
            Err(Trouble::Client(Gone)) => None,
        },
        outcome = input(write, stdin, sizes) => Some(outcome),
        () = client.gone() => None,
    }
}

enum Trouble {
    Shim(io::Error),
    Client(Gone),
}

async fn output(read: OwnedReadHalf, client: &Client) -> Result<(), Trouble> {
    let mut read = BufReader::new(read);
    loop {
        let kind = match read.read_u8().await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            kind => kind.map_err(Trouble::Shim)?,
        };
        let length = read.read_u32().await.map_err(Trouble::Shim)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > LONGEST_PAYLOAD {
            return Err(Trouble::Shim(io::ErrorKind::InvalidData.into()));
        }
        let mut payload = vec![0; length];
        read.read_exact(&mut payload).await.map_err(Trouble::Shim)?;
        let writer = match Kind::of(kind) {
            Some(Kind::Stdout) => client.stdout.as_ref(),
            Some(Kind::Stderr) => client.stderr.as_ref(),
            _ => None,
        };
        if let Some(writer) = writer {
            writer.send(Bytes::from(payload)).await.map_err(Trouble::Client)?;
        }
    }
}

/// Never ends by itself: the container may have more to say.
async fn input(
    mut write: OwnedWriteHalf,
    mut stdin: Option<mpsc::Receiver<Bytes>>,
    mut sizes: Option<Sizes>,
) -> io::Result<()> {
    if stdin.is_some() {
        write.write_all(&header(Kind::Stdin, 0)).await?;
    }
    loop {
        tokio::select! {
            bytes = next(&mut stdin) => match bytes {
                Some(mut bytes) => while !bytes.is_empty() {
                    let piece = bytes.split_to(bytes.len().min(LONGEST_PAYLOAD));
                    write.write_all(&header(Kind::Stdin, piece.len())).await?;
                    write.write_all(&piece).await?;
                },
                None => {
                    write.write_all(&header(Kind::EndOfStdin, 0)).await?;
                    stdin = None;
                }
            },
            size = next_size(&mut sizes) => match size.map(|size| serde_json::to_vec(&size)) {
                Some(text) => {
                    let text = text?;
                    write.write_all(&header(Kind::Size, text.len())).await?;
                    write.write_all(&text).await?;
                }
                None => sizes = None,
            },
        }
    }
}

async fn next(stdin: &mut Option<mpsc::Receiver<Bytes>>) -> Option<Bytes> {
    match stdin {
        Some(stdin) => stdin.recv().await,
        None => std::future::pending().await,
    }
}

async fn next_size(sizes: &mut Option<Sizes>) -> Option<terminal::Size> {
    match sizes {
        Some(sizes) => sizes.next().await,
        None => std::future::pending().await,
    }
}
