use std::fmt::Display;

/// The reasons that were said since something began to fail. Who tries again and again says each of
/// them once, however often it comes up and however it alternates with another: when a connection is
/// lost, some hear of that while others are told that a queue is full.
#[derive(Debug, Default)]
pub struct Said(Vec<String>);

impl Said {
    /// How many reasons are said at most, should each be another.
    const MOST: usize = 10;

    /// Whether this reason is to be said, and from now on was.
    pub fn is_news(&mut self, reason: impl Display) -> bool {
        let reason = reason.to_string();
        let news = self.0.len() < Self::MOST && !self.0.contains(&reason);
        if news {
            self.0.push(reason);
        }
        news
    }

    /// It does not fail any more; when it does again, everything is news.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_said_once_however_it_alternates_with_another() {
        let mut said = Said::default();
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
        let mut said = Said::default();
        let news = (0..1000).filter(|number| said.is_news(number));
        assert_eq!(news.count(), Said::MOST);
    }
}
