//! Parses updates from a response body that arrives in pieces, chunked or not.

use crate::source::number_of;

#[derive(Default)]
pub struct Decoder {
    chunks: Option<Chunks>,
    /// The start of an incomplete line.
    line: Vec<u8>,
    event: Event,
}

#[derive(Default)]
struct Chunks {
    left: usize,
    size: Vec<u8>,
}

#[derive(Default)]
struct Event {
    id: u64,
    number: Option<usize>,
    /// Whether it is a `gap` or a `status`, not an update.
    named: bool,
}

impl Decoder {
    pub fn new(chunked: bool) -> Decoder {
        Decoder { chunks: chunked.then(Chunks::default), ..Decoder::default() }
    }

    /// Calls `update` with the id of each update and the number of its price.
    pub fn feed(&mut self, mut bytes: &[u8], mut update: impl FnMut(u64, usize)) {
        let Some(chunks) = &mut self.chunks else {
            return lines(&mut self.line, bytes, |line| {
                self.event.line(line, &mut update);
            });
        };
        while !bytes.is_empty() {
            if chunks.left == 0 {
                let end = bytes.iter().position(|&byte| byte == b'\n');
                let (size, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
                chunks.size.extend_from_slice(size);
                bytes = rest;
                if end.is_some() {
                    // An empty line ends the previous chunk.
                    let size = str::from_utf8(&chunks.size).unwrap_or_default();
                    chunks.left = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
                    chunks.size.clear();
                }
            } else {
                let (data, rest) = bytes.split_at(chunks.left.min(bytes.len()));
                chunks.left -= data.len();
                bytes = rest;
                lines(&mut self.line, data, |line| {
                    self.event.line(line, &mut update);
                });
            }
        }
    }
}

fn lines(unfinished: &mut Vec<u8>, bytes: &[u8], mut each: impl FnMut(&[u8])) {
    for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
        match piece.strip_suffix(b"\n") {
            Some(line) if unfinished.is_empty() => each(line),
            Some(line) => {
                unfinished.extend_from_slice(line);
                each(unfinished);
                unfinished.clear();
            }
            None => unfinished.extend_from_slice(piece),
        }
    }
}

impl Event {
    fn line(&mut self, line: &[u8], update: &mut impl FnMut(u64, usize)) {
        if let Some(id) = line.strip_prefix(b"id: ") {
            self.id = parse(id).unwrap_or(0);
        } else if let Some(data) = line.strip_prefix(b"data: ") {
            self.number = last_number(data);
        } else if line.starts_with(b"event: ") {
            self.named = true;
        } else if line.is_empty() {
            if let (false, Some(number)) = (self.named, self.number) {
                update(self.id, number);
            }
            *self = Event::default();
        }
    }
}

/// Returns the number of the last price in these bytes.
pub fn last_number(bytes: &[u8]) -> Option<usize> {
    const KEY: &[u8] = b"\"price\":";
    let tail = &bytes[bytes.len().saturating_sub(128)..];
    let at = tail.windows(KEY.len()).rposition(|window| window == KEY)?;
    let value = &tail[at + KEY.len()..];
    let end = value.iter().position(|byte| b",}".contains(byte))?;
    parse(&value[..end]).and_then(number_of)
}

fn parse<T: std::str::FromStr>(bytes: &[u8]) -> Option<T> {
    str::from_utf8(bytes).ok()?.trim().parse().ok()
}
