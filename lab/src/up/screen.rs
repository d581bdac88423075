//! Shows the flow: as a picture that is drawn anew in its place on a terminal, as a line now and
//! then elsewhere.

use std::borrow::Cow;
use std::io;

use cli::terminal::{in_locale, line, say};
use console::Term;
use observe::Snapshot;
use observe::snapshot::{LastRequest, shortened};

/// How many characters a bar has, where there is room for all of it, and the rest of its line.
const BAR: usize = 24;
const BESIDE_BAR: usize = 55;

/// How many messages fill a bar, at the least: so that a few look like few.
const SMALLEST_SCALE: u64 = 100;

/// How many of the last requests are shown.
const FOLLOWED: usize = 5;

/// How many characters of a string are shown.
const STRING: usize = 12;

/// Where the flow is shown.
pub(super) struct Screen {
    /// Where there is a terminal whose cursor can move.
    terminal: Option<Term>,
    /// What stands above the picture, and has to be said again once the terminal has moved it.
    above: String,
    /// The rows and columns that the terminal had, and the lines that were drawn.
    drawn: Option<((u16, u16), usize)>,
}

impl Screen {
    /// Says what is to stand above the picture.
    pub(super) fn new(above: String) -> Self {
        let terminal = Term::buffered_stdout();
        let is_able = terminal.is_term() && !console::is_dumb();
        // The reader that has gone is noticed with the first moment.
        let _ = say(format_args!("{above}"));
        Self { terminal: is_able.then_some(terminal), above, drawn: None }
    }

    /// How many columns there are; as many as are wanted, where there is no terminal.
    pub(super) fn columns(&self) -> u16 {
        self.terminal.as_ref().map_or(u16::MAX, |terminal| terminal.size().1)
    }

    /// Shows this moment instead of the one before.
    pub(super) fn show(&mut self, text: &str, summary: &str) -> io::Result<()> {
        let Some(terminal) = &self.terminal else { return line(summary) };
        let size = terminal.size();
        match self.drawn {
            None => {}
            Some((before, lines)) if before == size => terminal.clear_last_lines(lines)?,
            // A terminal that has become narrower has broken its lines, and nobody can say into how many.
            Some(_) => {
                terminal.clear_screen()?;
                terminal.write_line(&self.above)?;
            }
        }
        let lines = fitted(text, size);
        terminal.write_line(&in_locale(lines.join("\n")))?;
        self.drawn = Some((size, lines.len()));
        terminal.flush()
    }
}

/// The lines of a text that fit into so many rows and columns, with one row for the cursor.
fn fitted(text: &str, (rows, columns): (u16, u16)) -> Vec<Cow<'_, str>> {
    let lines = text.lines().take(usize::from(rows).saturating_sub(1));
    lines.map(|line| console::truncate_str(line.trim_end(), columns.into(), "…")).collect()
}

/// The whole picture, for a terminal with so many columns.
pub(super) fn picture(snapshot: &Snapshot, replicas: &str, columns: u16) -> String {
    let width = usize::from(columns).saturating_sub(BESIDE_BAR).min(BAR);
    let mut lines = vec![
        String::new(),
        format!(
            "  {:<15} {:<width$}  {:>8} {:>9} {:>7} {:>7}",
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
            bar(queue.in_flight, queue.waiting, scale, width),
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

fn bar(in_flight: u64, waiting: u64, scale: u64, width: usize) -> String {
    // What is there shows, however little it is.
    let cells = |count: u64| (count * width as u64).div_ceil(scale);
    let cells = |count| usize::try_from(cells(count)).unwrap_or(width).min(width);
    let worked_on = cells(in_flight);
    let waits = cells(in_flight + waiting).saturating_sub(worked_on);
    format!("{:·<width$}", "▓".repeat(worked_on) + &"░".repeat(waits))
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
    fn picture_is_cut_to_the_terminal() {
        assert_eq!(fitted("one   \ntwo\nthree", (3, 4)), ["one", "two"]);
        assert_eq!(fitted("three four", (2, 5)), ["thre…"]);
        assert_eq!(fitted("one", (0, 0)), [] as [&str; 0]);
    }

    #[test]
    fn a_bar_shows_what_is_worked_on_before_what_waits() {
        assert_eq!(bar(0, 0, 10, BAR), "·".repeat(24));
        assert_eq!(bar(0, 1, 1_000_000, BAR), format!("░{}", "·".repeat(23)));
        assert_eq!(bar(5, 5, 10, BAR), format!("{}{}", "▓".repeat(12), "░".repeat(12)));
        assert_eq!(bar(20, 0, 10, BAR), "▓".repeat(24));
    }
}
