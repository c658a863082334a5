//! The answer to one request, as it arrives.

use crate::load::outcome::Failure;

const HEADERS_MAX: usize = 64;

/// Bytes of an answer whose end is not yet known, or has come.
#[derive(Debug, Default)]
pub struct Answer {
    bytes: Vec<u8>,
    head: Option<Head>,
}

#[derive(Debug, Clone, Copy)]
struct Head {
    len: usize,
    /// Of the body; without it the body lasts until the connection is closed.
    content_length: Option<usize>,
    is_chunked: bool,
}

impl Answer {
    /// Adds what was received. `Ok(true)`: the answer is complete.
    pub fn push(&mut self, received: &[u8]) -> Result<bool, Failure> {
        self.bytes.extend_from_slice(received);
        if self.head.is_none() {
            self.head = parse_head(&self.bytes)?;
        }
        Ok(self.is_complete())
    }

    /// The server has closed the connection.
    pub fn end(&self) -> Result<(), Failure> {
        match self.head {
            Some(Head { content_length: None, is_chunked: false, .. }) => Ok(()),
            _ if self.is_complete() => Ok(()),
            _ => Err(Failure::CutShort),
        }
    }

    fn is_complete(&self) -> bool {
        let Some(head) = self.head else { return false };
        let body = &self.bytes[head.len..];
        match head.content_length {
            Some(len) => body.len() >= len,
            None => head.is_chunked && (body.ends_with(b"\r\n0\r\n\r\n") || body == b"0\r\n\r\n"),
        }
    }
}

fn parse_head(bytes: &[u8]) -> Result<Option<Head>, Failure> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let len = match response.parse(bytes) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Failure::Status),
    };
    if !matches!(response.code, Some(200..=399)) {
        return Err(Failure::Status);
    }
    let value = |wanted: &str| {
        let header =
            response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(wanted));
        header.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let content_length = value("content-length").and_then(|value| value.trim().parse().ok());
    let is_chunked = value("transfer-encoding").is_some_and(|value| value.contains("chunked"));
    Ok(Some(Head { len, content_length, is_chunked }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(parts: &[&str]) -> Result<bool, Failure> {
        let mut answer = Answer::default();
        let mut complete = false;
        for part in parts {
            complete = answer.push(part.as_bytes())?;
        }
        answer.end().map(|()| complete)
    }

    #[test]
    fn content_length_says_when_it_is_complete() {
        let whole = "HTTP/1.1 200 OK\r\nCONTENT-LENGTH: 6\r\n\r\nhello\n";
        assert_eq!(answer(&[whole]), Ok(true));
        assert_eq!(answer(&[&whole[..10], &whole[10..30], &whole[30..]]), Ok(true));
        assert_eq!(answer(&[&whole[..whole.len() - 1]]), Err(Failure::CutShort));
        assert_eq!(answer(&[&whole[..10]]), Err(Failure::CutShort));
        assert_eq!(answer(&[]), Err(Failure::CutShort));
    }

    #[test]
    fn without_length_the_end_of_the_connection_completes_it() {
        assert_eq!(answer(&["HTTP/1.0 301 Moved\r\n\r\nhel", "lo"]), Ok(false));
    }

    #[test]
    fn chunked_body_must_have_its_last_chunk() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(answer(&[head, "3\r\nabc\r\n", "0\r\n\r\n"]), Ok(true));
        assert_eq!(answer(&[head, "3\r\nabc\r\n"]), Err(Failure::CutShort));
        assert_eq!(answer(&[head, "0\r\n\r\n"]), Ok(true));
    }

    #[test]
    fn other_status_or_other_protocol_is_a_failure() {
        assert_eq!(answer(&["HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"]), Err(Failure::Status));
        assert_eq!(answer(&["SSH-2.0-x\r\n"]), Err(Failure::Status));
    }
}
