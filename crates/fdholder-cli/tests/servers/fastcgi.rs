//! A client of `FastCGI`, which php-fpm speaks.

use crate::support::PATIENCE;
use std::io::{Error, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// Types of records.
const BEGIN: u8 = 1;
const END: u8 = 3;
const PARAMS: u8 = 4;
const STDIN: u8 = 5;

fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    [&[1, kind, 0, 1, high, low, 0, 0], content].concat()
}

/// One connection, one request for `/ping`, the whole answer.
pub fn ping(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let variables =
        [("REQUEST_METHOD", "GET"), ("SCRIPT_NAME", "/ping"), ("SCRIPT_FILENAME", "/ping")];
    let lengths = |name: &str, value: &str| [name.len() as u8, value.len() as u8];
    let pair = |(name, value): (&str, &str)| {
        [&lengths(name, value)[..], name.as_bytes(), value.as_bytes()].concat()
    };
    let request = [
        record(BEGIN, &[0, 1, 0, 0, 0, 0, 0, 0]),
        record(PARAMS, &variables.map(pair).concat()),
        record(PARAMS, b""),
        record(STDIN, b""),
    ];
    stream.write_all(&request.concat())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let has_ended = answer.windows(4).any(|part| part == [1, END, 0, 1]);
    if has_ended && answer.windows(5).any(|part| part == b"hello") {
        return Ok(());
    }
    Err(Error::other(format!("not an answer: {:?}", String::from_utf8_lossy(&answer))))
}
