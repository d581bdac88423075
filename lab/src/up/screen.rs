//! Shows the flow: on a terminal as a picture that is redrawn in its place, elsewhere as a line from time to time.

use std::borrow::Cow;
use std::io;

use cli::terminal::{in_locale, line, say};
use console::{Term, measure_text_width};
use observe::snapshot::{LastRequest, shortened};
use observe::{LaneSnapshot, Snapshot};
use workqueue::variable;

/// The length of a bar in characters, if there is room for it, and the length of the rest of its line.
const BAR: usize = 24;
const BESIDE_BAR: usize = 55;

/// The lowest number of messages that fill a bar, so that a few messages look like few.
const SMALLEST_SCALE: u64 = 100;

/// The number of last requests that are shown.
const FOLLOWED: usize = 5;

/// The number of characters of a string that are shown.
const STRING: usize = 12;

/// The output for the flow.
pub(super) struct Screen {
    /// The terminal, if its cursor can move.
    terminal: Option<Term>,
    /// The text above the picture, as far as there is room.
    above: String,
}

impl Screen {
    /// Sets the text above the picture.
    pub(super) fn new(above: String) -> Self {
        let terminal = Term::buffered_stdout();
        let is_able = terminal.is_term() && !console::is_dumb() && variable("TERM").is_some();
        let terminal = is_able.then_some(terminal);
        // Also prints the text, so that a person can still find it by scrolling up.
        let rows = terminal.as_ref().map_or(0, |terminal| terminal.size().0);
        // If the reader of the output has gone, the first snapshot finds that.
        let _ = say(format_args!("{above}{}", "\n".repeat(rows.into())));
        Self { terminal, above }
    }

    /// The number of columns; any number without a terminal.
    pub(super) fn columns(&self) -> u16 {
        self.terminal.as_ref().map_or(u16::MAX, |terminal| terminal.size().1)
    }

    /// Shows this text instead of the previous one.
    pub(super) fn show(&self, text: &str, summary: &str) -> io::Result<()> {
        let Some(terminal) = &self.terminal else { return line(summary) };
        // Redraws the whole screen, because a key, a log line or a narrower terminal may have changed it. Clears it
        // line by line, because some terminals keep a copy of a screen that is cleared at once.
        terminal.move_cursor_to(0, 0)?;
        for text in fitted(&self.above, text, terminal.size()) {
            terminal.clear_line()?;
            terminal.write_line(&in_locale(text.into_owned()))?;
        }
        terminal.clear_to_end_of_screen()?;
        terminal.flush()
    }
}

/// The lines that fit into this many rows and columns, with one row for the cursor: the text, the first line of `above`,
/// and as many of its last lines as fit. The terminal breaks long lines, so that they can be copied.
fn fitted<'a>(above: &'a str, text: &'a str, (rows, columns): (u16, u16)) -> Vec<Cow<'a, str>> {
    let columns = usize::from(columns);
    let mut room = usize::from(rows).saturating_sub(1);
    let text = text.lines().take(room);
    let text = text.map(|line| console::truncate_str(line.trim_end(), columns, "…"));
    let mut lines: Vec<_> = text.collect();
    room -= lines.len();
    lines.reverse();
    let rows = |line| measure_text_width(line).div_ceil(columns.max(1)).max(1);
    let mut above = above.lines();
    let first = above.next().filter(|first| rows(first) <= room);
    room -= first.map_or(0, rows);
    for line in above.rev() {
        if rows(line) > room {
            break;
        }
        room -= rows(line);
        lines.push(line.into());
    }
    lines.extend(first.map(Cow::from));
    lines.reverse();
    lines
}

/// The parts in indented lines of this many columns. No part is broken.
pub(super) fn wrapped(
    parts: impl IntoIterator<Item: AsRef<str>>,
    gap: &str,
    columns: u16,
) -> String {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        let part = part.as_ref();
        let fits = |line: &String| {
            measure_text_width(line) + gap.len() + measure_text_width(part) <= columns.into()
        };
        match lines.last_mut().filter(|line| fits(line)) {
            Some(line) => *line += &[gap, part].concat(),
            None => lines.push(format!("  {part}")),
        }
    }
    lines.join("\n")
}

/// The whole picture, for a terminal with this many columns, with these lines about the processes.
pub(super) fn picture(snapshot: &Snapshot, processes: &str, columns: u16) -> String {
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
    let to_come = Some(&snapshot.schedules).filter(|it| it.scheduled + it.waiting > 0);
    for queue in to_come.into_iter().chain(&snapshot.queues) {
        if queue.full {
            lines.push(format!("  {:<15} full: its publishers wait", queue.name));
        }
        if let Some(until) = queue.paused_until {
            lines.push(format!("  {:<15} paused until {}", queue.name, until.strftime("%H:%M:%S")));
        }
        lines.push(format!(
            "  {:<15} {}  {:>8} {:>9} {:>7.0} {:>7.0}",
            queue.name,
            bar(queue.in_flight, queue.waiting, scale, width),
            queue.waiting,
            queue.in_flight,
            queue.arrival_rate,
            queue.departure_rate,
        ));
        lines.extend(queue.lanes.iter().map(|lane| {
            let LaneSnapshot { priority, waiting, in_flight } = lane;
            format!("    {:<13} {:<width$}  {waiting:>8} {in_flight:>9}", priority.as_str(), "")
        }));
        if queue.scheduled > 0 {
            lines.push(format!("    {:<13} {:<width$}  {:>8}", "not due yet", "", queue.scheduled));
        }
    }
    lines.push(String::new());
    let totals = &snapshot.totals;
    lines.push(format!(
        "  requested {}   stored {}   received {}   dead letters {}",
        totals.requested, totals.stored, totals.received, totals.dead_letters
    ));
    lines.push(processes.to_owned());
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
                queue.name, queue.waiting, queue.in_flight, queue.departure_rate
            )
        })
        .collect();
    let totals = &snapshot.totals;
    format!(
        "requested {}  stored {}  received {}  dead letters {}  |  {}",
        totals.requested,
        totals.stored,
        totals.received,
        totals.dead_letters,
        queues.join("  |  ")
    )
}

fn bar(in_flight: u64, waiting: u64, scale: u64, width: usize) -> String {
    // Even the smallest number has a character.
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
        assert_eq!(fitted("above", "one   \ntwo\nthree", (3, 4)), ["one", "two"]);
        assert_eq!(fitted("above", "three four", (2, 5)), ["thre…"]);
        assert_eq!(fitted("above", "one", (0, 0)), [] as [&str; 0]);
    }

    #[test]
    fn first_and_last_lines_above_stay_where_there_is_room() {
        let above = "first\nsecond\n\nfour five";
        assert_eq!(fitted(above, "one\ntwo", (6, 9)), ["first", "", "four five", "one", "two"]);
        // A long line takes two rows.
        assert_eq!(fitted(above, "one\ntwo", (6, 8)), ["first", "four five", "one", "two"]);
        assert_eq!(fitted(above, "one\ntwo", (4, 8)), ["first", "one", "two"]);
        assert_eq!(fitted(above, "one\ntwo", (3, 8)), ["one", "two"]);
    }

    #[test]
    fn name_is_not_broken_at_the_end_of_a_line() {
        let names = ["one (pid 1)", "two (ended)", "three"];
        assert_eq!(wrapped(names, "   ", 80), "  one (pid 1)   two (ended)   three");
        assert_eq!(wrapped(names, "   ", 27), "  one (pid 1)   two (ended)\n  three");
        assert_eq!(wrapped(names, "   ", 0), "  one (pid 1)\n  two (ended)\n  three");
    }

    #[test]
    fn bar_shows_messages_in_flight_before_waiting_ones() {
        assert_eq!(bar(0, 0, 10, BAR), "·".repeat(24));
        assert_eq!(bar(0, 1, 1_000_000, BAR), format!("░{}", "·".repeat(23)));
        assert_eq!(bar(5, 5, 10, BAR), format!("{}{}", "▓".repeat(12), "░".repeat(12)));
        assert_eq!(bar(20, 0, 10, BAR), "▓".repeat(24));
    }
}
