//! Shows the flow: as a picture that is drawn anew in its place on a terminal, as a line now and
//! then elsewhere.

use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use observe::Snapshot;
use observe::snapshot::{LastRequest, shortened};

/// How many characters a bar has.
const BAR: usize = 24;

/// How many messages fill a bar, at the least: so that a few look like few.
const SMALLEST_SCALE: u64 = 100;

/// How many of the last requests are shown.
const FOLLOWED: usize = 5;

/// How many characters of a string are shown.
const STRING: usize = 12;

/// Where the flow is shown.
pub(super) struct Screen {
    picture: Option<ProgressBar>,
}

impl Screen {
    pub(super) fn new() -> Self {
        let picture = || {
            let style = ProgressStyle::with_template("{msg}").expect("the template is sound");
            ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout()).with_style(style)
        };
        // A picture needs a terminal whose cursor can move.
        Self { picture: (io::stdout().is_terminal() && !console::is_dumb()).then(picture) }
    }

    /// Shows this moment instead of the one before.
    pub(super) fn show(&mut self, text: &str, summary: &str) -> io::Result<()> {
        match &self.picture {
            None => writeln!(io::stdout(), "{summary}"),
            // Drawn at once, as one: what is drawn line by line too often is left half done.
            Some(picture) => {
                picture.set_message(text.to_owned());
                Ok(())
            }
        }
    }

    /// Leaves the last moment where it stands.
    pub(super) fn close(self) {
        if let Some(picture) = self.picture {
            picture.abandon();
        }
    }
}

/// The whole picture.
pub(super) fn picture(snapshot: &Snapshot, replicas: &str) -> String {
    let mut lines = vec![
        String::new(),
        format!(
            "  {:<15} {:<BAR$}  {:>8} {:>9} {:>7} {:>7}",
            "queue", "", "waiting", "in flight", "in/s", "out/s"
        ),
    ];
    // All bars have one scale, so that they can be compared.
    let most = snapshot.queues.iter().map(|queue| queue.waiting + queue.in_flight).max();
    let scale = most.unwrap_or_default().max(SMALLEST_SCALE);
    for queue in &snapshot.queues {
        if let Some(until) = queue.paused_until {
            lines.push(format!("  {:<15} paused until {}", queue.name, until.strftime("%H:%M:%S")));
        }
        lines.push(format!(
            "  {:<15} {}  {:>8} {:>9} {:>7.0} {:>7.0}",
            queue.name,
            bar(queue.in_flight, queue.waiting, scale),
            queue.waiting,
            queue.in_flight,
            queue.come,
            queue.go,
        ));
    }
    lines.push(String::new());
    let numbers = &snapshot.numbers;
    lines.push(format!(
        "  requested {}   stored {}   received {}   dead letters {}",
        numbers.requested, numbers.stored, numbers.received, numbers.dead_letters
    ));
    lines.push(format!("  {replicas}"));
    lines.push(String::new());
    lines.push(
        "  the last strings   asked           made by         stored by       marked by".to_owned(),
    );
    lines.extend(snapshot.last.iter().take(FOLLOWED).map(row));
    lines.push(String::new());
    lines.join("\n")
}

/// A snapshot in one line.
pub(super) fn summary(snapshot: &Snapshot) -> String {
    let queues: Vec<String> = snapshot
        .queues
        .iter()
        .map(|queue| {
            format!(
                "{} {} waiting, {} in flight, {:.0}/s",
                queue.name, queue.waiting, queue.in_flight, queue.go
            )
        })
        .collect();
    let numbers = &snapshot.numbers;
    format!(
        "requested {}  stored {}  received {}  dead letters {}  |  {}",
        numbers.requested,
        numbers.stored,
        numbers.received,
        numbers.dead_letters,
        queues.join("  |  ")
    )
}

fn bar(in_flight: u64, waiting: u64, scale: u64) -> String {
    // What is there shows, however little it is.
    let cells = |count: u64| (count * BAR as u64).div_ceil(scale);
    let cells = |count| usize::try_from(cells(count)).unwrap_or(BAR).min(BAR);
    let worked_on = cells(in_flight);
    let waits = cells(in_flight + waiting).saturating_sub(worked_on);
    format!("{:·<BAR$}", "▓".repeat(worked_on) + &"░".repeat(waits))
}

fn row(request: &LastRequest) -> String {
    let or_none = |name: &Option<String>| name.clone().unwrap_or_else(|| "…".to_owned());
    format!(
        "  {:<18} {}    {:<15} {:<15} {:<15}",
        request.string.as_ref().map_or_else(|| "…".to_owned(), |string| shortened(string, STRING)),
        request.requested_at.strftime("%H:%M:%S%.3f"),
        or_none(&request.generator),
        or_none(&request.stored_by),
        or_none(&request.marked_by),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_shows_what_is_worked_on_before_what_waits() {
        assert_eq!(bar(0, 0, 10), "·".repeat(24));
        assert_eq!(bar(0, 1, 1_000_000), format!("░{}", "·".repeat(23)));
        assert_eq!(bar(5, 5, 10), format!("{}{}", "▓".repeat(12), "░".repeat(12)));
        assert_eq!(bar(20, 0, 10), "▓".repeat(24));
    }
}
