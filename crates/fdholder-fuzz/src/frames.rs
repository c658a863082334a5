//! The frame codec: however a stream is cut, the same comes out of it.

use crate::input::Input;
use crate::ledger::{numbers, Fd, Ledger};
use crate::wire::{Part, Wire};
use fdholder::frame::{Decoder, Message};
use fdholder::limits::{HEADER_LEN, MESSAGE_FDS_MAX, REQUEST_PAYLOAD_MAX};

/// What one `sendmsg` has sent: bytes, and what goes with the first of them.
#[derive(Debug, Clone)]
struct Sent {
    bytes: Vec<u8>,
    ancillary: Ancillary,
}

/// Descriptors of one message, by how many there are.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Ancillary {
    None,
    Fds(usize),
    /// The receiver had no room for them.
    Lost,
}

/// What came out of a stream.
#[derive(Debug, PartialEq)]
struct Came {
    frames: Vec<Whole>,
    /// It was refused, or a frame was not whole at the end.
    ended: Ended,
}

#[derive(Debug, PartialEq)]
struct Whole {
    payload: Vec<u8>,
    fds: Vec<u32>,
    fds_lost: bool,
}

#[derive(Debug, PartialEq)]
enum Ended {
    Refused,
    MidFrame,
    BetweenFrames,
}

/// How a reader asks for frames.
#[derive(Debug, Clone, Copy)]
enum Asks {
    /// Until there is none.
    ForAll,
    /// Only when it is told that there is one, as a blocking client.
    WhenTold,
}

/// Bytes that say how a stream was sent, and how it is to be cut.
pub fn frames(data: &[u8]) {
    let mut input = Input::new(data);
    let payload_max = input.choose(&[1000, 20, REQUEST_PAYLOAD_MAX]);
    let cuts: Vec<usize> = input.short().iter().map(|cut| 1 + usize::from(*cut)).collect();
    let sent = stream(&mut input);

    let finest = receive(&sent, &[1], payload_max, Asks::ForAll);
    check_payloads(&finest, &sent, payload_max);
    for cuts in [&cuts[..], &[7], &[usize::MAX]] {
        for asks in [Asks::ForAll, Asks::WhenTold] {
            let came = receive(&sent, cuts, payload_max, asks);
            check_payloads(&came, &sent, payload_max);
            // Descriptors may come a little earlier than their bytes when cuts are coarse, so
            // what is refused may not be refused; but not the other way round.
            if finest.ended != Ended::Refused {
                assert_eq!(came, finest, "cut at {cuts:?}, asking {asks:?}");
            }
        }
    }
}

fn stream(input: &mut Input<'_>) -> Vec<Sent> {
    let mut sent = Vec::new();
    while !input.is_empty() {
        let kind = input.byte();
        let fds = usize::from(kind >> 3 & 7) * if kind & 0x40 == 0 { 1 } else { 63 };
        let ancillary = match kind % 8 {
            0 | 1 => Ancillary::None,
            2 | 3 => Ancillary::Fds(fds.min(MESSAGE_FDS_MAX)),
            4 => Ancillary::Lost,
            // An honest message, whole.
            _ => {
                let payload = if kind % 8 == 6 { input.long() } else { input.short() };
                let fds = vec![(); fds.min(MESSAGE_FDS_MAX)];
                let message = Message::new(fds, |bytes| bytes.extend_from_slice(payload));
                let ancillary = match message.fds().len() {
                    0 => Ancillary::None,
                    _ if kind % 8 == 7 => Ancillary::Lost,
                    count => Ancillary::Fds(count),
                };
                sent.push(Sent { bytes: message.bytes().to_vec(), ancillary });
                continue;
            }
        };
        let bytes = input.short().to_vec();
        // Nothing goes without a byte.
        if !bytes.is_empty() {
            sent.push(Sent { bytes, ancillary });
        }
    }
    sent
}

/// Reads a stream in parts of at most these lengths.
fn receive(sent: &[Sent], cuts: &[usize], payload_max: usize, asks: Asks) -> Came {
    let ledger = Ledger::default();
    let mut wire = Wire::default();
    for Sent { bytes, ancillary } in sent {
        let (fds, fds_lost) = match ancillary {
            Ancillary::None => (0, false),
            Ancillary::Fds(count) => (*count, false),
            Ancillary::Lost => (0, true),
        };
        wire.send(Part { bytes: bytes.clone(), fds: ledger.open_many(fds), fds_lost });
    }
    let mut reader = Reader {
        decoder: Decoder::new(payload_max),
        came: Came { frames: Vec::new(), ended: Ended::BetweenFrames },
        pushed: Vec::new(),
        taken: 0,
        fds_pushed: 0,
        fds_taken: 0,
        marks: 0,
    };
    let mut cuts = cuts.iter().copied().cycle();
    // Of a refused stream nothing more is read.
    while reader.came.ended != Ended::Refused {
        let Some(part) = wire.receive(cuts.next().unwrap_or(usize::MAX)) else { break };
        reader.push(part);
        reader.ask(asks);
    }
    let Reader { decoder, mut came, .. } = reader;
    if came.ended != Ended::Refused && decoder.is_mid_frame() {
        came.ended = Ended::MidFrame;
    }
    drop((decoder, wire));
    ledger.settle();
    came
}

struct Reader {
    decoder: Decoder<Fd>,
    came: Came,
    pushed: Vec<u8>,
    /// Bytes of the frames that came.
    taken: usize,
    fds_pushed: u32,
    fds_taken: u32,
    /// Marks of lost descriptors that wait.
    marks: usize,
}

impl Reader {
    fn push(&mut self, Part { bytes, fds, fds_lost }: Part<Fd>) {
        self.fds_pushed += fds.len() as u32; // An input has not so many.
        self.marks += usize::from(fds_lost);
        self.pushed.extend_from_slice(&bytes);
        self.decoder.push(&bytes, fds, fds_lost);
    }

    fn ask(&mut self, asks: Asks) {
        loop {
            let is_told = self.decoder.has_frame();
            if !is_told && matches!(asks, Asks::WhenTold) {
                break;
            }
            match self.decoder.next() {
                Ok(Some(frame)) => {
                    assert!(is_told, "a frame of which it was not told");
                    let fds = numbers(&frame.fds);
                    assert!(!frame.fds_lost || fds.is_empty());
                    self.marks -= usize::from(frame.fds_lost);
                    // Each comes once, in order, to one frame.
                    let end = self.fds_taken + fds.len() as u32; // 253 at most.
                    assert!(fds.iter().copied().eq(self.fds_taken..end), "{fds:?}");
                    self.fds_taken = end;
                    self.taken += HEADER_LEN + frame.payload.len();
                    let payload = frame.payload.to_vec();
                    self.came.frames.push(Whole { payload, fds, fds_lost: frame.fds_lost });
                }
                Ok(None) => {
                    assert!(!is_told, "no frame, although it was told of one");
                    break;
                }
                Err(_) => {
                    assert!(is_told, "an error of which it was not told");
                    self.came.ended = Ended::Refused;
                    return;
                }
            }
        }
        self.check();
    }

    /// What waits for more.
    fn check(&self) {
        let rest = &self.pushed[self.taken..];
        assert_eq!(self.decoder.is_mid_frame(), !rest.is_empty());
        let waiting = (self.fds_pushed - self.fds_taken) as usize + self.marks;
        assert!(waiting <= MESSAGE_FDS_MAX, "{waiting} wait");
        assert!(waiting == 0 || !rest.is_empty(), "{waiting} wait between frames");
        let unread = self.decoder.unread_without_fds();
        assert_eq!(unread.map(<[u8]>::len), (waiting == 0).then_some(rest.len()));
        // What is long is looked at when it has become a frame.
        if rest.len() < 32 {
            assert!(unread.is_none_or(|unread| unread == rest));
        }
    }
}

/// What the bytes alone say.
fn check_payloads(came: &Came, sent: &[Sent], payload_max: usize) {
    let bytes: Vec<u8> = sent.iter().flat_map(|sent| sent.bytes.iter().copied()).collect();
    let mut rest = &bytes[..];
    for Whole { payload, fds, fds_lost } in &came.frames {
        let len = u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize;
        assert_eq!(len, payload.len());
        assert!(len <= payload_max);
        let announced = usize::from(u16::from_be_bytes([rest[4], rest[5]]));
        assert!(announced == fds.len() || *fds_lost && announced > 0);
        assert_eq!(rest[HEADER_LEN..HEADER_LEN + len], payload[..]);
        rest = &rest[HEADER_LEN + len..];
    }
    match came.ended {
        Ended::Refused => {}
        Ended::BetweenFrames => assert_eq!(rest, b""),
        Ended::MidFrame => {
            assert!(!rest.is_empty());
            if let Some(header) = rest.first_chunk::<HEADER_LEN>() {
                let len = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
                assert!(rest.len() < HEADER_LEN + len as usize, "it was whole");
                assert!(len as usize <= payload_max);
            }
        }
    }
}
