use jiff::Timestamp;

/// The present moment, to the microsecond: two clocks do not agree on more digits.
#[must_use]
pub fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now)
}
