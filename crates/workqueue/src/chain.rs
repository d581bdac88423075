use std::error::Error;

/// What an error comes from.
pub type Source = Box<dyn Error + Send + Sync>;

/// An error with all its causes, as one line. Some errors tell their cause themselves: no cause is told
/// twice.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
