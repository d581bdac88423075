//! Times in plans and reports.

use std::time::Duration;

use jiff::{SignedDuration, fmt::friendly::SpanPrinter};

/// A time with its unit, such as 50ms.
pub(crate) fn in_words(time: Duration) -> String {
    let time = SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
    SpanPrinter::new().duration_to_string(&time)
}

pub(crate) fn whole_milliseconds(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}
