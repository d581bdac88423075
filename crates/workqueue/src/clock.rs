use jiff::Timestamp;

/// The present moment, to the microsecond: what more digits would say, nobody can read off two
/// clocks.
#[must_use]
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}
