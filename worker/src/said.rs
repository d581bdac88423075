use std::sync::{Mutex, MutexGuard};

/// The reasons that were said since something began to fail. Who tries again and again says each of
/// them once, however often it comes up and however it alternates with another: when a connection is
/// lost, some hear of that while others are told that a queue is full.
#[derive(Debug, Default)]
pub(crate) struct Said(Mutex<Vec<String>>);

impl Said {
    /// How many reasons are said at most, should each be another.
    const MOST: usize = 10;

    /// Whether this reason is to be said, and from now on was.
    pub(crate) fn is_news(&self, reason: &str) -> bool {
        let mut reasons = self.reasons();
        let news = reasons.len() < Self::MOST && reasons.iter().all(|said| said != reason);
        if news {
            reasons.push(reason.to_owned());
        }
        news
    }

    /// It does not fail any more; when it does again, everything is news.
    pub(crate) fn forget(&self) {
        self.reasons().clear();
    }

    fn reasons(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().expect("nothing panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_said_once_however_it_alternates_with_another() {
        let said = Said::default();
        let news: Vec<&str> = (0..1000)
            .flat_map(|_| ["full", "away"])
            .filter(|reason| said.is_news(reason))
            .collect();
        assert_eq!(news, ["full", "away"]);
        said.forget();
        assert!(said.is_news("full"));
    }

    #[test]
    fn of_reasons_that_never_repeat_only_some_are_said() {
        let said = Said::default();
        let news = (0..1000).filter(|number| said.is_news(&number.to_string()));
        assert_eq!(news.count(), Said::MOST);
    }
}
