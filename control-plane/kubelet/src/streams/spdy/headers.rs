//! Header blocks of SPDY/3: name and value pairs, compressed by zlib with a dictionary of the specification and one
//! context for all blocks of a direction (draft-mbelshe-httpbis-spdy-00 §2.6.10).

use std::io;
use std::sync::LazyLock;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Largest block, uncompressed, in bytes.
const LARGEST_BLOCK: usize = 16 << 10;

/// The words of the dictionary, each after its length in four bytes.
const WORDS: [&str; 65] = [
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];

/// Its end, without lengths.
const PHRASES: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
    203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden\
    404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
    Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
    chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,\
    publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut dictionary = Vec::new();
    for word in WORDS {
        put(&mut dictionary, word);
    }
    dictionary.extend_from_slice(PHRASES.as_bytes());
    dictionary
});

/// A block that is no block.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Malformed {
    /// zlib.
    #[error("a header block that cannot be uncompressed")]
    Compression,
    /// More than is accepted.
    #[error("a header block of more than {LARGEST_BLOCK} bytes")]
    TooLarge,
    /// Lengths.
    #[error("a header block that is cut short")]
    Short,
}

/// Reads the blocks of one direction.
#[derive(Debug)]
pub struct HeaderReader(Decompress);

impl Default for HeaderReader {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl HeaderReader {
    /// The headers of the next block.
    pub fn read(&mut self, block: &[u8]) -> Result<Vec<(String, String)>, Malformed> {
        parse(&self.uncompressed(block)?)
    }

    fn uncompressed(&mut self, mut block: &[u8]) -> Result<Vec<u8>, Malformed> {
        // One more than is accepted tells a block that is too large.
        let mut text = Vec::with_capacity(LARGEST_BLOCK + 1);
        while !block.is_empty() {
            let before = (self.0.total_in(), text.len());
            let outcome = self.0.decompress_vec(block, &mut text, FlushDecompress::Sync);
            let taken = usize::try_from(self.0.total_in() - before.0).unwrap_or(usize::MAX);
            block = block.get(taken..).ok_or(Malformed::Compression)?;
            match outcome {
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0
                        .set_dictionary(&DICTIONARY)
                        .map_err(|_| Malformed::Compression)?;
                }
                Ok(Status::Ok | Status::BufError) if text.len() > LARGEST_BLOCK => {
                    return Err(Malformed::TooLarge);
                }
                Ok(Status::Ok) if taken > 0 || text.len() > before.1 => {}
                _ => return Err(Malformed::Compression),
            }
        }
        if text.len() > LARGEST_BLOCK {
            return Err(Malformed::TooLarge);
        }
        Ok(text)
    }
}

/// `[count:4]`, then for each header `[length:4][name][length:4][value]`.
fn parse(mut block: &[u8]) -> Result<Vec<(String, String)>, Malformed> {
    let count = take_length(&mut block)?;
    // No capacity by what a client says.
    let mut headers = Vec::new();
    for _ in 0..count {
        headers.push((
            take_text(&mut block)?.to_ascii_lowercase(),
            take_text(&mut block)?,
        ));
    }
    Ok(headers)
}

fn take_length(block: &mut &[u8]) -> Result<usize, Malformed> {
    let (length, rest) = block.split_first_chunk::<4>().ok_or(Malformed::Short)?;
    *block = rest;
    usize::try_from(u32::from_be_bytes(*length)).map_err(|_| Malformed::Short)
}

fn take_text(block: &mut &[u8]) -> Result<String, Malformed> {
    let length = take_length(block)?;
    let (text, rest) = block.split_at_checked(length).ok_or(Malformed::Short)?;
    *block = rest;
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Writes the blocks of one direction.
#[derive(Debug)]
pub struct HeaderWriter(Option<Compress>);

impl Default for HeaderWriter {
    fn default() -> Self {
        let mut compress = Compress::new(Compression::fast(), true);
        Self(compress.set_dictionary(&DICTIONARY).is_ok().then_some(compress))
    }
}

impl HeaderWriter {
    /// The next block.
    pub fn write(&mut self, headers: &[(&str, &str)]) -> io::Result<Vec<u8>> {
        let mut text = length(headers.len()).to_vec();
        for (name, value) in headers {
            put(&mut text, name);
            put(&mut text, value);
        }
        let compress = self.0.as_mut().ok_or(io::ErrorKind::Unsupported)?;
        // Room for what zlib adds to text that it cannot make shorter, and for its header and flush.
        let mut block = Vec::with_capacity(text.len() + text.len() / 8 + 64);
        compress
            .compress_vec(&text, &mut block, FlushCompress::Sync)
            .map_err(io::Error::other)?;
        Ok(block)
    }
}

fn put(block: &mut Vec<u8>, text: &str) {
    block.extend(length(text.len()));
    block.extend_from_slice(text.as_bytes());
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(headers: &[(&str, &str)]) -> Vec<(String, String)> {
        headers
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn a_block_begins_as_the_specification_says() {
        // CMF and FLG with a dictionary, then the dictionary's Adler-32.
        let block = HeaderWriter::default().write(&[]).expect("written");
        assert_eq!(
            block.get(1..6).map(|bytes| (bytes[0] & 0x20, &bytes[1..])),
            Some((0x20, &[0xe3, 0xc6, 0xa7, 0xc2][..]))
        );
    }

    #[test]
    fn blocks_of_one_direction_share_their_context() {
        let (mut writer, mut reader) = (HeaderWriter::default(), HeaderReader::default());
        for headers in [
            &[("streamtype", "error"), ("port", "80"), ("requestid", "0")][..],
            &[],
            &[("streamtype", "data"), ("port", "80"), ("requestid", "0")],
        ] {
            let block = writer.write(headers).expect("written");
            assert_eq!(reader.read(&block), Ok(owned(headers)));
        }
    }

    #[track_caller]
    fn check(text: &[u8], expected: Malformed) {
        let mut compress = Compress::new(Compression::fast(), true);
        compress.set_dictionary(&DICTIONARY).expect("a dictionary");
        let mut block = Vec::with_capacity(text.len() + 1024);
        compress
            .compress_vec(text, &mut block, FlushCompress::Sync)
            .expect("compressed");
        assert_eq!(HeaderReader::default().read(&block), Err(expected));
    }

    #[test]
    fn hostile_blocks_are_refused() {
        check(&[], Malformed::Short);
        check(&[0, 0, 0, 1], Malformed::Short);
        check(&u32::MAX.to_be_bytes(), Malformed::Short);
        check(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, b'a'], Malformed::Short);
        // Four megabytes in four kilobytes.
        check(&vec![0; 4 << 20], Malformed::TooLarge);
        check(&vec![0; LARGEST_BLOCK + 1], Malformed::TooLarge);
        assert_eq!(
            HeaderReader::default().read(b"GET / HTTP/1.1"),
            Err(Malformed::Compression)
        );
        // A dictionary that is not SPDY's.
        assert_eq!(
            HeaderReader::default().read(&[0x78, 0xbb, 1, 2, 3, 4, 0, 0]),
            Err(Malformed::Compression)
        );
    }
}
