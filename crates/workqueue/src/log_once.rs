use std::fmt::Display;

/// The reasons that were logged since something began to fail. A loop that retries logs each reason once, however
/// often it repeats or alternates with another: when a connection is lost, some tries fail for that, and others
/// because a queue is full.
#[derive(Debug, Default)]
pub struct LogOnce(Vec<String>);

impl LogOnce {
    /// The most different reasons that are logged.
    const MOST: usize = 10;

    /// Whether this reason is new, so that the caller has to log it.
    pub fn is_first(&mut self, reason: impl Display) -> bool {
        let reason = reason.to_string();
        let is_first = self.0.len() < Self::MOST && !self.0.contains(&reason);
        if is_first {
            self.0.push(reason);
        }
        is_first
    }

    /// The newest reason that was logged.
    pub(crate) fn last(&self) -> Option<&str> {
        self.0.last().map(String::as_str)
    }

    /// Forgets all reasons after a success: at the next failure each is logged again.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_is_logged_once_however_it_alternates() {
        let mut logged = LogOnce::default();
        let first: Vec<&str> = (0..1000)
            .flat_map(|_| ["full", "away"])
            .filter(|reason| logged.is_first(reason))
            .collect();
        assert_eq!(first, ["full", "away"]);
        logged.forget();
        assert!(logged.is_first("full"));
    }

    #[test]
    fn only_some_of_many_reasons_are_logged() {
        let mut logged = LogOnce::default();
        let first = (0..1000).filter(|number| logged.is_first(number));
        assert_eq!(first.count(), LogOnce::MOST);
    }
}
