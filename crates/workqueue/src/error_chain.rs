use std::error::Error;

/// The cause of an error.
pub type Source = Box<dyn Error + Send + Sync>;

/// An error with all its causes, as one line. If an error's text includes its cause already, the cause is not
/// repeated.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("it is gone")]
    struct Cause;

    #[derive(Debug, thiserror::Error)]
    enum Effect {
        #[error("cannot read: {0}")]
        Tells(#[source] Cause),
        #[error("cannot read")]
        IsSilent(#[source] Cause),
    }

    #[test]
    fn cause_is_reported_once() {
        for effect in [Effect::Tells(Cause), Effect::IsSilent(Cause)] {
            assert_eq!(chain(&effect), "cannot read: it is gone");
        }
    }
}
