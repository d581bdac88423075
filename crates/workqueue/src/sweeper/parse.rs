//! The rules by which the parser of the client reads a message.
//!
//! These are the rules of async-nats 0.51 only. This code reads no messages; it finds those that the client cannot
//! read.

use std::str::FromStr;

use async_nats::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// Why the client cannot read a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flaw {
    #[error("its subject is not UTF-8")]
    Subject,
    #[error("there is white space in its subject")]
    Space,
    #[error("its headers are not UTF-8")]
    Headers,
    #[error("its headers do not begin with NATS/1.0")]
    Version,
    #[error("the status in the first line of its headers is not a number of three digits")]
    Status,
    #[error("a line among its headers has no colon")]
    Colon,
    #[error("the name of one of its headers has a space or something that is not ASCII")]
    Name,
    #[error("there is a carriage return within the value of one of its headers")]
    CarriageReturn,
}

/// The flaw for which the client cannot read a message with this subject and these headers, if it has one. The subject
/// is as the broker shows it in JSON, where U+FFFD replaces bytes that are not UTF-8.
///
/// A subject that really contains U+FFFD counts as unreadable, too. That is harmless, because no such subject names a
/// job.
pub(super) fn flaw(subject: &str, block: &[u8]) -> Option<Flaw> {
    if subject.contains(char::REPLACEMENT_CHARACTER) {
        return Some(Flaw::Subject);
    }
    if block.is_empty() {
        return None;
    }
    // The client splits the line with the subject at any white space only if the message has headers.
    if subject.split_whitespace().count() != 1 {
        return Some(Flaw::Space);
    }
    let Ok(text) = str::from_utf8(block) else { return Some(Flaw::Headers) };
    first_line(text.lines().next().unwrap_or_default())
        .err()
        .or_else(|| headers(text).find_map(Result::err))
}

/// The readable headers of a message, as the client would read them.
pub(super) fn readable(block: &[u8]) -> HeaderMap {
    let mut readable = HeaderMap::new();
    for (name, value) in headers(&String::from_utf8_lossy(block)).flatten() {
        if !value.as_str().contains(char::REPLACEMENT_CHARACTER) {
            readable.append(name, value);
        }
    }
    readable
}

fn first_line(line: &str) -> Result<(), Flaw> {
    let rest = line.strip_prefix("NATS/1.0").ok_or(Flaw::Version)?.trim();
    let status = rest.split_once(' ').map_or(rest, |(status, _description)| status.trim());
    if status.is_empty() || StatusCode::from_str(status).is_ok() {
        Ok(())
    } else {
        Err(Flaw::Status)
    }
}

/// The headers behind the first line. The value of a header continues in the lines below it that begin with white
/// space.
fn headers(block: &str) -> impl Iterator<Item = Result<(HeaderName, HeaderValue), Flaw>> {
    let mut lines = block.lines().skip(1).peekable();
    std::iter::from_fn(move || {
        let line = lines.find(|line| !line.is_empty())?;
        let Some((name, value)) = line.split_once(':') else { return Some(Err(Flaw::Colon)) };
        let Ok(name) = name.parse::<HeaderName>() else { return Some(Err(Flaw::Name)) };
        let mut value = value.trim_start().to_owned();
        while let Some(more) = lines.next_if(|line| line.starts_with(char::is_whitespace)) {
            value.push_str(more);
        }
        let value = value.trim_end().parse().map_err(|_| Flaw::CarriageReturn);
        Some(value.map(|value| (name, value)))
    })
}
