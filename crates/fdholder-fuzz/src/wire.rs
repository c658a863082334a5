//! A stream socket as the kernel keeps it: messages, with descriptors at the first byte.

use std::collections::VecDeque;

/// What was sent and not received yet.
#[derive(Debug)]
pub struct Wire<F>(VecDeque<Sent<F>>);

/// What is left of one message.
#[derive(Debug)]
struct Sent<F> {
    bytes: VecDeque<u8>,
    fds: Vec<F>,
    fds_lost: bool,
}

impl<F> Sent<F> {
    fn has_ancillary(&self) -> bool {
        self.fds_lost || !self.fds.is_empty()
    }
}

/// What one `sendmsg` sends, or one `recvmsg` receives.
#[derive(Debug)]
pub struct Part<F> {
    pub bytes: Vec<u8>,
    pub fds: Vec<F>,
    /// The receiver has no room for its descriptors.
    pub fds_lost: bool,
}

impl<F> Default for Wire<F> {
    fn default() -> Self {
        Self(VecDeque::new())
    }
}

impl<F> Wire<F> {
    /// Nothing goes without a byte.
    pub fn send(&mut self, Part { bytes, fds, fds_lost }: Part<F>) {
        if !bytes.is_empty() {
            self.0.push_back(Sent { bytes: bytes.into(), fds, fds_lost });
        }
    }

    /// Descriptors on their way.
    pub fn fds(&self) -> usize {
        self.0.iter().map(|part| part.fds.len()).sum()
    }

    /// At most so many bytes. One read may bring the end of a message and the beginning of the
    /// next with its descriptors, but ends where a message with descriptors does.
    pub fn receive(&mut self, len_max: usize) -> Option<Part<F>> {
        let mut received = Part { bytes: Vec::new(), fds: Vec::new(), fds_lost: false };
        while let Some(sent) = self.0.front_mut() {
            let len = sent.bytes.len().min(len_max - received.bytes.len());
            if len == 0 {
                break;
            }
            let ends = sent.has_ancillary();
            received.bytes.extend(sent.bytes.drain(..len));
            if ends {
                received.fds = std::mem::take(&mut sent.fds);
                received.fds_lost = std::mem::take(&mut sent.fds_lost);
            }
            if sent.bytes.is_empty() {
                self.0.pop_front();
            }
            if ends {
                break;
            }
        }
        (!received.bytes.is_empty()).then_some(received)
    }
}
