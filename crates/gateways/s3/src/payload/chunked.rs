//! The aws-chunked framing: `SIZE[;chunk-signature=HEX] CR LF content CR LF`, a chunk of size zero, then trailers to the
//! end of the body. Content passes on while its chunk is still being hashed: the commit waits for the end, and the end
//! is reached only when every signature of the chain was right.
//!
//! Source: "Signature calculations: multiple chunks, including trailing headers", Amazon S3 API Reference.

use crate::auth::ChunkChain;
use crate::encoding::unhex;
use crate::error::{Code, Result, S3Error};
use bytes::{Buf, Bytes};
use sha2::{Digest, Sha256};

/// The longest header of a chunk in bytes.
const CHUNK_HEADER_MAX: usize = 256;

/// The most bytes of trailers.
const TRAILERS_MAX: usize = 4096;

/// The trailer that signs the others.
const TRAILER_SIGNATURE: &str = "x-amz-trailer-signature";

pub struct Chunked {
    /// `None` when chunks are not signed.
    chain: Option<ChunkChain>,
    /// Whether trailers may follow the last chunk.
    trailers: bool,
    state: State,
    sha256: Sha256,
    /// The signature that the present chunk claims.
    claimed: Option<[u8; 32]>,
}

enum State {
    Header(Vec<u8>),
    Content {
        left: u64,
    },
    /// How many bytes of the CR LF behind a chunk have come.
    ContentEnd {
        seen: usize,
    },
    Trailers(Vec<u8>),
}

pub enum Piece {
    Content(Bytes),
    /// The input is used up.
    NeedMore,
}

impl Chunked {
    pub fn new(chain: Option<ChunkChain>, trailers: bool) -> Chunked {
        Chunked { chain, trailers, state: State::Header(Vec::new()), sha256: Sha256::new(), claimed: None }
    }

    /// Takes from `input` up to the next piece of content. `room`: how much content may still come; a chunk that
    /// announces more is refused before it is read.
    pub fn decode(&mut self, input: &mut Bytes, room: u64) -> Result<Piece> {
        while !input.is_empty() {
            match &mut self.state {
                State::Header(line) => {
                    if take_line(input, line)? {
                        let line = std::mem::take(line);
                        self.start_chunk(&line, room)?;
                    }
                }
                State::Content { left } => {
                    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                    let content = input.split_to(count);
                    *left -= count as u64;
                    let complete = *left == 0;
                    if self.chain.is_some() {
                        self.sha256.update(&content);
                    }
                    if complete {
                        self.check_chunk()?;
                        self.state = State::ContentEnd { seen: 0 };
                    }
                    return Ok(Piece::Content(content));
                }
                State::ContentEnd { seen } => {
                    if input.get_u8() != b"\r\n"[*seen] {
                        return Err(malformed("a chunk is longer than its size"));
                    }
                    *seen += 1;
                    if *seen == 2 {
                        self.state = State::Header(Vec::new());
                    }
                }
                State::Trailers(text) => {
                    if text.len() + input.len() > TRAILERS_MAX {
                        return Err(malformed("the trailers are too long"));
                    }
                    text.extend_from_slice(input);
                    input.clear();
                }
            }
        }
        Ok(Piece::NeedMore)
    }

    /// The body has ended: the trailers, if the framing and all signatures were right.
    pub fn finish(&mut self) -> Result<Vec<(String, String)>> {
        let State::Trailers(text) = &self.state else {
            return Err(malformed("the last chunk is missing"));
        };
        let mut trailers = parse_trailers(text)?;
        let position = trailers.iter().position(|(name, _)| name == TRAILER_SIGNATURE);
        let signature = position.map(|position| trailers.remove(position).1);
        if !self.trailers && (!trailers.is_empty() || signature.is_some()) {
            return Err(malformed("there are trailers, but none were announced"));
        }
        if let Some(chain) = self.chain.as_mut().filter(|_| self.trailers) {
            let claimed = signature.as_deref().and_then(unhex).ok_or_else(mismatch)?;
            if !chain.accept_trailers(&claimed, &canonical(&trailers)) {
                return Err(mismatch());
            }
        }
        Ok(trailers)
    }

    fn start_chunk(&mut self, line: &[u8], room: u64) -> Result<()> {
        let line = std::str::from_utf8(line).map_err(|_| malformed("a chunk header is not text"))?;
        let (size, extension) = line.split_once(';').unwrap_or((line, ""));
        let valid = (1..=16).contains(&size.len()) && size.bytes().all(|b| b.is_ascii_hexdigit());
        let size = u64::from_str_radix(size, 16).ok().filter(|_| valid);
        let size = size.ok_or_else(|| malformed("the size of a chunk is not a hexadecimal number"))?;
        if size > room {
            return Err(S3Error::new(Code::IncompleteBody, "The body is longer than was announced."));
        }
        if self.chain.is_some() {
            let claimed = extension.strip_prefix("chunk-signature=").and_then(unhex);
            self.claimed = Some(claimed.ok_or_else(|| malformed("a chunk has no valid signature"))?);
        }
        if size == 0 {
            self.check_chunk()?;
            self.state = State::Trailers(Vec::new());
        } else {
            self.state = State::Content { left: size };
        }
        Ok(())
    }

    /// The present chunk is complete: does its signature continue the chain?
    fn check_chunk(&mut self) -> Result<()> {
        let Some(chain) = &mut self.chain else { return Ok(()) };
        let hash: [u8; 32] = std::mem::take(&mut self.sha256).finalize().into();
        let claimed = self.claimed.take().ok_or_else(mismatch)?;
        if chain.accept_chunk(&claimed, &hash) { Ok(()) } else { Err(mismatch()) }
    }
}

/// Moves input to `line` up to the end of a line; says whether the line is complete (without its CR LF).
fn take_line(input: &mut Bytes, line: &mut Vec<u8>) -> Result<bool> {
    let end = input.iter().position(|&b| b == b'\n');
    let part = input.split_to(end.map_or(input.len(), |end| end + 1));
    if line.len() + part.len() > CHUNK_HEADER_MAX {
        return Err(malformed("a chunk header is too long"));
    }
    line.extend_from_slice(&part);
    if end.is_none() {
        return Ok(false);
    }
    match line.strip_suffix(b"\r\n") {
        Some(stripped) => {
            let length = stripped.len();
            line.truncate(length);
            Ok(true)
        }
        None => Err(malformed("a chunk header does not end with CR LF")),
    }
}

/// Lines `name:value`. Empty lines end the body, and stand between trailers in what some clients send.
fn parse_trailers(text: &[u8]) -> Result<Vec<(String, String)>> {
    let text = std::str::from_utf8(text).map_err(|_| malformed("a trailer is not text"))?;
    let mut trailers = Vec::new();
    for line in text.split('\n').map(|line| line.trim_end_matches('\r')).filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or_else(|| malformed("a trailer has no value"))?;
        let blank = [' ', '\t'];
        trailers.push((name.trim_matches(blank).to_ascii_lowercase(), value.trim_matches(blank).to_owned()));
    }
    Ok(trailers)
}

/// The trailers as they are signed.
pub fn canonical(trailers: &[(String, String)]) -> String {
    let mut lines: Vec<String> = trailers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
    lines.sort_unstable();
    lines.concat()
}

fn malformed(why: &str) -> S3Error {
    S3Error::new(Code::IncompleteBody, format!("The aws-chunked body is malformed: {why}. Nothing was stored."))
}

fn mismatch() -> S3Error {
    S3Error::new(
        Code::SignatureDoesNotMatch,
        "The signature of a chunk or of the trailers does not match the one we calculated. Nothing was stored.",
    )
}
