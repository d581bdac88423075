//! Finds the publishes in the stream of a client.
//!
//! The protocol has lines that end in CR LF. A line `PUB <subject> [reply] <size>` or
//! `HPUB <subject> [reply] <size of the headers> <size of all>` is followed by that many bytes and another CR LF. Any
//! other line stands alone.

use anyhow::{Context, bail, ensure};

/// The longest line. A line has credentials or a subject, and by default a server accepts 4 KiB.
const LONGEST_LINE: usize = 64 * 1024;

/// The most withheld bytes. A client that sends more has to wait.
const ROOM: usize = 1024 * 1024;

/// The bytes of one client that have not passed yet.
#[derive(Debug, Default)]
pub(super) struct ClientStream {
    bytes: Vec<u8>,
    /// The number of bytes of the passing message that are still to come, with its CR LF.
    message_left: usize,
    withheld: Option<String>,
}

impl ClientStream {
    /// The end, where new bytes belong.
    pub(super) fn end(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Whether more bytes may be added. Only withheld bytes accumulate, because others pass at once.
    pub(super) fn has_room(&self) -> bool {
        self.bytes.len() < ROOM
    }

    /// The subject of the withheld publish, which is the next to pass.
    pub(super) fn withheld(&self) -> Option<&str> {
        self.withheld.as_deref()
    }

    /// Removes and returns the bytes that may pass, in order: up to a publish for whose subject `may_pass` is false, or
    /// up to an incomplete line. The message of a publish that has passed may arrive in any number of pieces.
    pub(super) fn pass(
        &mut self,
        mut may_pass: impl FnMut(&str) -> bool,
    ) -> anyhow::Result<Vec<u8>> {
        let mut passed = 0;
        self.withheld = None;
        loop {
            let message = self.message_left.min(self.bytes.len() - passed);
            passed += message;
            self.message_left -= message;

            let rest = &self.bytes[passed..];
            let Some(length) = rest.iter().position(|&byte| byte == b'\n').map(|at| at + 1) else {
                ensure!(rest.len() < LONGEST_LINE, "a line of more than {LONGEST_LINE} bytes");
                break;
            };
            if let Some((subject, size)) = publish(&rest[..length])? {
                if !may_pass(subject) {
                    self.withheld = Some(subject.to_owned());
                    break;
                }
                self.message_left = size.checked_add(2).context("a message without end")?;
            }
            passed += length;
        }
        Ok(self.bytes.drain(..passed).collect())
    }
}

/// The subject and the size of the message, if this is the line of a publish.
fn publish(line: &[u8]) -> anyhow::Result<Option<(&str, usize)>> {
    let mut words = line.split(|byte| b" \t\r\n".contains(byte)).filter(|word| !word.is_empty());
    let operation = words.next().unwrap_or_default();
    let arguments = if operation.eq_ignore_ascii_case(b"PUB") {
        2..=3
    } else if operation.eq_ignore_ascii_case(b"HPUB") {
        3..=4
    } else {
        return Ok(None);
    };
    let words: Vec<&[u8]> = words.collect();
    let (&[subject, ..], &[.., size]) = (&words[..], &words[..]) else {
        bail!("a publish without arguments");
    };
    ensure!(arguments.contains(&words.len()), "a publish with {} arguments", words.len());
    let subject = str::from_utf8(subject).context("a subject that is no text")?;
    let size = str::from_utf8(size).ok().and_then(|size| size.parse().ok());
    Ok(Some((subject, size.context("a publish without a size")?)))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    /// The bytes of these chunks that pass, and the subjects for which `may_pass` was called.
    fn passed(chunks: &[&[u8]], withheld: &str) -> (Vec<u8>, Vec<String>) {
        let mut stream = ClientStream::default();
        let (mut passed, mut asked) = (Vec::new(), Vec::new());
        for chunk in chunks {
            stream.end().extend_from_slice(chunk);
            let may_pass = |subject: &str| {
                let may_pass = !subject.starts_with(withheld);
                if may_pass || asked.last().is_none_or(|last| last != subject) {
                    asked.push(subject.to_owned());
                }
                may_pass
            };
            passed.extend(stream.pass(may_pass).unwrap());
        }
        (passed, asked)
    }

    #[test]
    fn withheld_publish_withholds_all_bytes_behind_it() {
        let before = b"CONNECT {\"a\":1}\r\nPUB a.1 5\r\nhello\r\nPING\r\n";
        let behind = b"HPUB b.1 reply 12 14\r\nNATS/1.0\r\n\r\n{}\r\nPUB a.2 0\r\n\r\nPONG\r\n";
        let mut stream = ClientStream::default();
        stream.end().extend_from_slice(before);
        stream.end().extend_from_slice(behind);
        let no_b = |subject: &str| !subject.starts_with("b.");
        assert_eq!(stream.pass(no_b).unwrap(), before);
        assert_eq!(stream.withheld(), Some("b.1"));
        assert_eq!(stream.pass(no_b).unwrap(), b"");
        assert_eq!(stream.pass(|_| true).unwrap(), behind);
        assert_eq!(stream.withheld(), None);
    }

    #[test]
    fn operations_may_have_any_case_and_any_white_space() {
        let mut stream = ClientStream::default();
        stream
            .end()
            .extend_from_slice(b"pub \t a.1  reply\t2\r\nok\r\nhPuB a.2 10 10 \n0123456789\r\n");
        let mut subjects = Vec::new();
        stream
            .pass(|subject| {
                subjects.push(subject.to_owned());
                true
            })
            .unwrap();
        assert_eq!(subjects, ["a.1", "a.2"]);
        assert_eq!(stream.end(), b"");
    }

    #[test]
    fn message_passes_piece_by_piece() {
        let mut stream = ClientStream::default();
        stream.end().extend_from_slice(b"PUB a 1000000\r\nfirst");
        assert_eq!(stream.pass(|_| true).unwrap(), b"PUB a 1000000\r\nfirst");
        stream.end().extend_from_slice(b" and PUB b 1\r\n");
        assert_eq!(stream.pass(|_| panic!("no publish")).unwrap(), b" and PUB b 1\r\n");
        assert_eq!(stream.end(), b"");
    }

    #[test]
    fn malformed_lines_are_refused() {
        for line in [
            "PUB\r\n",
            "PUB 1\r\n",
            "PUB a b c 1\r\n",
            "PUB a x\r\n",
            "PUB a -1\r\n",
            "PUB a 18446744073709551615\r\n",
            "HPUB a 1\r\n",
            &"x".repeat(LONGEST_LINE),
        ] {
            let mut stream = ClientStream::default();
            stream.end().extend_from_slice(line.as_bytes());
            assert!(stream.pass(|_| true).is_err(), "{line}");
        }
    }

    /// An operation of a client: its bytes, and its subject if it is a publish.
    fn operation() -> impl Strategy<Value = (Vec<u8>, Option<String>)> {
        let line = prop_oneof![
            Just("CONNECT {\"verbose\":false}"),
            Just("PING"),
            Just("PONG"),
            Just("SUB a.* 1"),
            Just("UNSUB 1"),
            Just("PUBLISH a 1"),
        ];
        let line = line.prop_map(|line| (format!("{line}\r\n").into_bytes(), None));
        // Messages that look like operations.
        let message = prop_oneof![
            vec(any::<u8>(), 0..40),
            Just(b"PUB b.2 3\r\nabc\r\n".to_vec()),
            Just(b"\r\nPUB b.3 1000\r\n".to_vec()),
        ];
        let publish = ("[abc]\\.[0-9]", any::<bool>(), any::<bool>(), message).prop_map(
            |(subject, reply, headers, message)| {
                let operation = if headers { "HPUB" } else { "PUB" };
                let reply = if reply { " reply.1" } else { "" };
                let of_headers = if headers { " 0" } else { "" };
                let size = message.len();
                let line = format!("{operation} {subject}{reply}{of_headers} {size}\r\n");
                let bytes = [line.as_bytes(), &message, b"\r\n"].concat();
                (bytes, Some(subject))
            },
        );
        prop_oneof![line, publish]
    }

    proptest! {
        #[test]
        fn chunks_make_no_difference(
            operations in vec(operation(), 0..12),
            cuts in vec(any::<Index>(), 0..12),
        ) {
            let mut all = Vec::new();
            let mut to_pass = None;
            let mut to_be_asked = Vec::new();
            for (bytes, subject) in &operations {
                if let Some(subject) = subject && to_pass.is_none() {
                    to_be_asked.push(subject.clone());
                    if subject.starts_with("b.") {
                        to_pass = Some(all.len());
                    }
                }
                all.extend_from_slice(bytes);
            }

            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(all.len() + 1)).collect();
            cuts.extend([0, all.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &all[cut[0]..cut[1]]).collect();

            let (passed, asked) = passed(&chunks, "b.");
            prop_assert_eq!(passed, &all[..to_pass.unwrap_or(all.len())]);
            prop_assert_eq!(asked, to_be_asked);
        }
    }
}
