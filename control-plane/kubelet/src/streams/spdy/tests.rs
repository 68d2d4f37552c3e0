//! A client that speaks SPDY well, and several that do not.

use tokio::io::DuplexStream;

use super::*;

struct Client {
    socket: DuplexStream,
    headers: HeaderWriter,
    replies: HeaderReader,
}

/// What the server says.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Data(u32, u8, Vec<u8>),
    Reply(u32),
    Reset(u32, u32),
    Pong(u32),
    Goaway(u32),
}

impl Client {
    fn new() -> (Self, Connection, mpsc::Receiver<Stream>) {
        let (socket, server) = tokio::io::duplex(64 << 10);
        let (connection, streams) = open(server);
        let client = Self {
            socket,
            headers: HeaderWriter::default(),
            replies: HeaderReader::default(),
        };
        (client, connection, streams)
    }

    fn syn(&mut self, stream: u32, flags: u8, headers: &[(&str, &str)]) -> Vec<u8> {
        let block = self.headers.write(headers).expect("written");
        let payload = [&stream.to_be_bytes()[..], &[0; 6], &block].concat();
        framed(
            [VERSION.to_be_bytes(), SYN_STREAM.to_be_bytes()].concat(),
            flags,
            &payload,
        )
    }

    async fn say(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.expect("the server reads");
    }

    async fn open(&mut self, stream: u32, headers: &[(&str, &str)]) {
        let frame = self.syn(stream, 0, headers);
        self.say(&frame).await;
    }

    /// The next frame; `None` when the server has ended the connection.
    async fn hear(&mut self) -> Option<Said> {
        let first = self.socket.read_u32().await.ok()?;
        let second = self.socket.read_u32().await.expect("a whole head");
        let head = Head::parse(first, second).expect("a head");
        let (Head::Control { length, .. } | Head::Data { length, .. }) = head;
        let mut payload = vec![0; length];
        self.socket.read_exact(&mut payload).await.expect("a whole frame");
        let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("four bytes"));
        Some(match head {
            Head::Data { stream, flags, .. } => Said::Data(stream, flags, payload),
            Head::Control { kind: SYN_REPLY, .. } => {
                assert_eq!(self.replies.read(&payload[4..]), Ok(Vec::new()));
                Said::Reply(word(0))
            }
            Head::Control { kind: RST_STREAM, .. } => Said::Reset(word(0), word(4)),
            Head::Control { kind: PING, .. } => Said::Pong(word(0)),
            Head::Control { kind: GOAWAY, .. } => Said::Goaway(word(0)),
            Head::Control { kind, .. } => panic!("a frame of type {kind}"),
        })
    }
}

#[tokio::test]
async fn a_stream_carries_bytes_both_ways_to_its_end() {
    let (mut client, connection, mut streams) = Client::new();
    client.open(1, &[("StreamType", "data"), ("port", "80")]).await;
    let mut stream = streams.recv().await.expect("opened");
    assert_eq!(
        (
            stream.header("streamtype"),
            stream.header("port"),
            stream.header("none")
        ),
        ("data", "80", "")
    );
    assert_eq!(client.hear().await, Some(Said::Reply(1)));
    // A frame longer than a piece arrives in pieces.
    client.say(&data(1, FIN, &vec![7; CHUNK + 1])).await;
    let pieces = [
        stream.input.recv().await,
        stream.input.recv().await,
        stream.input.recv().await,
    ];
    let lengths = pieces.map(|piece| piece.map(|piece| piece.len()));
    assert_eq!(lengths, [Some(CHUNK), Some(1), None]);
    stream
        .output
        .send(Bytes::from(vec![8; CHUNK + 2]))
        .await
        .expect("sent");
    stream.output.end().await.expect("sent");
    assert_eq!(client.hear().await, Some(Said::Data(1, 0, vec![8; CHUNK])));
    assert_eq!(client.hear().await, Some(Said::Data(1, 0, vec![8; 2])));
    assert_eq!(client.hear().await, Some(Said::Data(1, FIN, vec![])));
    let closed = tokio::spawn(connection.close());
    assert_eq!(client.hear().await, Some(Said::Goaway(1)));
    assert_eq!(client.hear().await, None);
    drop(client);
    closed.await.expect("closed when the client has gone");
}

#[tokio::test]
async fn what_may_be_ignored_is_and_pings_are_answered() {
    let (mut client, _connection, mut streams) = Client::new();
    let (settings, window_update, unknown) = (4, 9, 77);
    client
        .say(&control(
            settings,
            &[0, 0, 0, 1, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff],
        ))
        .await;
    for _ in 0..100_000 {
        client.say(&control(window_update, &words(1, 0x7fff_ffff))).await;
    }
    client.say(&control(unknown, &[0; 4000])).await;
    client.say(&control(PING, &9_u32.to_be_bytes())).await;
    assert_eq!(client.hear().await, Some(Said::Pong(9)));
    client.open(1, &[]).await;
    assert_eq!(client.hear().await, Some(Said::Reply(1)));
    assert!(streams.recv().await.is_some());
}

#[tokio::test]
async fn ten_thousand_streams_get_no_more_than_their_places() {
    let (mut client, _connection, mut streams) = Client::new();
    let keeper = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(stream) = streams.recv().await {
            kept.push(stream);
        }
        kept.len()
    });
    let (mut accepted, mut refused) = (0, 0);
    for stream in (1..).step_by(2).take(10_000) {
        client.open(stream, &[("streamtype", "data")]).await;
        match client.hear().await {
            Some(Said::Reply(reply)) if reply == stream => accepted += 1,
            Some(Said::Reset(reset, REFUSED_STREAM)) if reset == stream => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((accepted, refused), (MOST_STREAMS, 10_000 - MOST_STREAMS));
    drop(client);
    assert_eq!(keeper.await.expect("ended"), MOST_STREAMS);
}

#[tokio::test]
async fn a_place_is_free_again_when_its_stream_has_gone() {
    let (mut client, _connection, mut streams) = Client::new();
    for stream in (1..).step_by(2).take(2 * MOST_STREAMS) {
        client.open(stream, &[]).await;
        assert_eq!(client.hear().await, Some(Said::Reply(stream)));
        drop(streams.recv().await);
    }
}

#[tokio::test]
async fn streams_that_are_not_the_clients_to_open_are_refused() {
    let (mut client, _connection, mut streams) = Client::new();
    for (stream, expected) in [
        (5, Said::Reply(5)),
        (5, Said::Reset(5, PROTOCOL_ERROR)),
        (3, Said::Reset(3, PROTOCOL_ERROR)),
        (8, Said::Reset(8, PROTOCOL_ERROR)),
        (0, Said::Reset(0, PROTOCOL_ERROR)),
        (7, Said::Reply(7)),
    ] {
        client.open(stream, &[]).await;
        assert_eq!(client.hear().await, Some(expected), "{stream}");
    }
    client.say(&data(99, 0, b"to nobody")).await;
    assert_eq!(client.hear().await, Some(Said::Reset(99, INVALID_STREAM)));
    assert!(streams.recv().await.is_some());
}

/// The connection ends, and nothing is kept of what was said.
#[track_caller]
fn check_ends(bytes: Vec<u8>) -> impl Future<Output = ()> {
    let caller = std::panic::Location::caller();
    async move {
        let (mut client, connection, mut streams) = Client::new();
        // The server may be gone before all is said.
        let _ = client.socket.write_all(&bytes).await;
        connection.gone().await;
        assert!(streams.recv().await.is_none(), "{caller}");
    }
}

#[tokio::test]
async fn a_client_that_breaks_the_protocol_is_left() {
    // Another version of SPDY, a control frame of 16 MiB, one that is cut short, headers that are none.
    check_ends(vec![0x80, 2, 0, 1, 0, 0, 0, 0]).await;
    check_ends([&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff][..], &[0; 1024]].concat()).await;
    check_ends(control(SYN_STREAM, &[0; 4])).await;
    check_ends(control(SYN_STREAM, &[1; 40])).await;
    check_ends(control(RST_STREAM, &[])).await;
    check_ends(control(PING, &[0])).await;
    check_ends(control(GOAWAY, &words(0, 0))).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_only_whoever_writes_to_it() {
    let (mut client, connection, _streams) = Client::new();
    let writer = connection.writer(1);
    let sent = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&sent);
    let flood = tokio::spawn(async move {
        while writer.send(Bytes::from(vec![0; CHUNK])).await.is_ok() {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    });
    // The queue, the socket and the frame between them are full; then nothing moves.
    let full = 8 + 4 + 1;
    while sent.load(std::sync::atomic::Ordering::Relaxed) < full - 1 {
        tokio::task::yield_now().await;
    }
    for _ in 0..10_000 {
        tokio::task::yield_now().await;
    }
    let held = sent.load(std::sync::atomic::Ordering::Relaxed);
    assert!((full - 1..=full).contains(&held), "{held} frames were taken");
    // As soon as it reads, it goes on.
    for _ in 0..100 {
        assert_eq!(client.hear().await, Some(Said::Data(1, 0, vec![0; CHUNK])));
    }
    drop((client, connection));
    flood.await.expect("ends with the client");
}

/// Whatever a recorded client turns into, reading it comes to an end without a panic.
#[tokio::test]
async fn noise_ends_the_reader_and_nothing_else() {
    let (mut client, ..) = Client::new();
    let recorded = [
        client.syn(
            1,
            0,
            &[("streamtype", "error"), ("port", "8080"), ("requestid", "0")],
        ),
        client.syn(
            3,
            0,
            &[("streamtype", "data"), ("port", "8080"), ("requestid", "0")],
        ),
        data(3, 0, b"GET / HTTP/1.1\r\n\r\n"),
        control(PING, &7_u32.to_be_bytes()),
        client.syn(5, FIN, &[("streamtype", "resize")]),
        control(RST_STREAM, &words(1, 5)),
        data(3, FIN, &[]),
        control(GOAWAY, &words(0, 0)),
    ]
    .concat();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state >> 33).expect("31 bits") % below
    };
    for _ in 0..5_000 {
        let mut noise = recorded.clone();
        for _ in 0..=random(6) {
            let (at, bit) = (random(noise.len()), random(8));
            noise[at] ^= 1 << bit;
        }
        noise.truncate(random(noise.len()) + 1);
        let (frames, mut said) = mpsc::channel(1);
        let (opened, mut streams) = mpsc::channel(1);
        let reader = Reader {
            socket: BufReader::new(&noise[..]),
            headers: HeaderReader::default(),
            inputs: HashMap::new(),
            newest: 0,
            places: Arc::new(Semaphore::new(MOST_STREAMS)),
            opened,
            frames,
        };
        tokio::join!(
            async { drop(reader.run().await) },
            async { while said.recv().await.is_some() {} },
            async { while streams.recv().await.is_some() {} },
        );
    }
}
