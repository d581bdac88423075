//! The comparison as a picture: an SVG file for light and dark.

use std::fmt::Write as _;
use std::time::Duration;

use super::figures::{PairFigures, Second};
use super::plan::OutageCause;
use super::report::{CompareReport, time};
use crate::theme::THEME;
use crate::times::in_words;

/// The sizes of the picture and of its parts, in its own units.
const WIDTH: usize = 960;
const LEFT: usize = 216;
const RIGHT: usize = 24;
const TOP: usize = 104;
const STRIP: usize = 84;
const GAP: usize = 24;
const BOTTOM: usize = 32;

/// The most marks on the time axis, and the possible distances between them in seconds.
const MARKS: usize = 12;
const STEPS: [usize; 9] = [1, 2, 5, 10, 30, 60, 300, 600, 3600];

/// Failed requests are hatched as well, for people who cannot distinguish the colours.
const STYLE: &str = "
text { font: 13px system-ui, sans-serif; fill: var(--soft); }
.name { font-weight: 600; font-size: 15px; fill: var(--ink); }
.mark { text-anchor: middle; }
.ground { fill: var(--ground); }
.line, .hatch { fill: none; stroke: var(--line); }
.kill, .pause-ground { fill: var(--out); }
.pause { fill: url(#paused); }
.hatch { stroke-width: 1.5; }
.at-once { fill: var(--once); }
.late { fill: var(--late); }
.failed { fill: url(#failed); }
.failed-ground { fill: var(--bad); }
.failed-hatch { fill: none; stroke: var(--ground); stroke-width: 1.2; }
";

/// The part that is drawn with a hatching.
const PATTERNS: &str = r#"<defs>
<pattern id="failed" width="6" height="6" patternUnits="userSpaceOnUse"><rect class="failed-ground" width="6" height="6"/><path class="failed-hatch" d="M-1 7L7 -1M-1 1L1 -1M5 7L7 5"/></pattern>
<pattern id="paused" width="8" height="8" patternUnits="userSpaceOnUse"><rect class="pause-ground" width="8" height="8"/><path class="hatch" d="M0 0L8 8"/></pattern>
</defs>
"#;

/// Draws the strips of all pairs over the time, one below the other.
pub(super) fn draw(report: &CompareReport) -> String {
    let seconds = report.pairs.iter().flat_map(|pair| &pair.seconds);
    let most = seconds.map(Second::asked).max().unwrap_or_default().max(1);
    let seconds = report.pairs.iter().map(|pair| pair.seconds.len()).max();
    let frame = Frame { seconds: seconds.unwrap_or_default().max(1), most };
    let below = TOP + report.pairs.len() * (STRIP + GAP) - GAP;
    let height = below + BOTTOM;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\" aria-labelledby=\"title desc\">\n\
         <title id=\"title\">{TITLE}</title>\n<desc id=\"desc\">{}</desc>\n\
         <style>{THEME}{STYLE}</style>\n{PATTERNS}\
         <rect class=\"ground\" width=\"{WIDTH}\" height=\"{height}\"/>\n\
         <text class=\"name\" x=\"20\" y=\"32\">{TITLE}</text>\n\
         <text x=\"20\" y=\"54\">{} requests a second, {} of work each; a bar is a second, and its full height \
         {most} requests.</text>\n",
        description(report),
        report.rate,
        in_words(report.work_time),
    );
    legend(&mut svg);
    for outage in &report.outages {
        let (class, begins) = (cause(outage.cause), frame.x(outage.at));
        let width = frame.x(outage.at + outage.lasts) - begins;
        let (top, height) = (TOP - 8, below - TOP + 16);
        let (x, width) = (tenths(begins), tenths(width));
        let place = format!("x=\"{x}\" y=\"{top}\" width=\"{width}\" height=\"{height}\"");
        let _ = writeln!(svg, "<rect class=\"{class}\" {place}/>");
    }
    for (number, pair) in report.pairs.iter().enumerate() {
        strip(&mut svg, &frame, pair, TOP + number * (STRIP + GAP));
    }
    let step = STEPS.into_iter().find(|step| frame.seconds / step < MARKS).unwrap_or(STEPS[8]);
    for second in (0..=frame.seconds).step_by(step) {
        let x = tenths(frame.x(Duration::from_secs(second as u64)));
        let _ =
            writeln!(svg, "<text class=\"mark\" x=\"{x}\" y=\"{}\">{second} s</text>", below + 24);
    }
    svg + "</svg>\n"
}

const TITLE: &str = "The outcomes of the same requests, by the second in which they were asked";

/// The scale of seconds and requests, in tenths of a unit.
struct Frame {
    seconds: usize,
    /// The number of requests at the full height of a strip.
    most: usize,
}

impl Frame {
    fn x(&self, time: Duration) -> usize {
        let width = (WIDTH - LEFT - RIGHT) * 10;
        let time = usize::try_from(time.as_millis()).unwrap_or(usize::MAX);
        LEFT * 10 + (width.saturating_mul(time) / (self.seconds * 1000)).min(width)
    }

    fn height(&self, requests: usize) -> usize {
        STRIP * 10 * requests / self.most
    }
}

/// The strip of a pair, with its top at `top`.
fn strip(svg: &mut String, frame: &Frame, pair: &PairFigures, top: usize) {
    let Second { at_once, late, failed } = pair.total;
    let longest = time(pair.longest_wait_ms);
    let lines = [
        format!("{at_once} at once, {late} late"),
        format!("{failed} {}, {} doubled", pair.design.failed(), pair.doubled),
        format!("the longest wait {longest}"),
    ];
    let _ = writeln!(svg, "<g class=\"strip\">");
    let _ = writeln!(
        svg,
        "<text class=\"name\" x=\"20\" y=\"{}\">{}</text>",
        top + 16,
        pair.design.name()
    );
    for (number, line) in lines.into_iter().enumerate() {
        let _ = writeln!(svg, "<text x=\"20\" y=\"{}\">{line}</text>", top + 38 + number * 19);
    }
    let mut paths =
        [("at-once", String::new()), ("late", String::new()), ("failed", String::new())];
    for (number, second) in pair.seconds.iter().enumerate() {
        let x = frame.x(Duration::from_secs(number as u64));
        let next = frame.x(Duration::from_secs(number as u64 + 1));
        // A little narrower than a second, so that there is a gap between seconds.
        let width = (next - x) * 9 / 10;
        let mut requests = 0;
        for ((_, path), count) in paths.iter_mut().zip([second.at_once, second.late, second.failed])
        {
            let base = frame.height(requests);
            requests += count;
            let height = frame.height(requests) - base;
            if count > 0 {
                let y = (top + STRIP) * 10 - base;
                let [x, y, width, height] = [x, y, width, height].map(tenths);
                let _ = write!(path, "M{x} {y}h{width}v-{height}h-{width}z");
            }
        }
    }
    for (class, path) in paths.into_iter().filter(|(_, path)| !path.is_empty()) {
        let _ = writeln!(svg, "<path class=\"{class}\" d=\"{path}\"/>");
    }
    let (y, right) = (top + STRIP, WIDTH - RIGHT);
    let _ = writeln!(svg, "<path class=\"line\" d=\"M{LEFT} {y}H{right}\"/>\n</g>");
}

fn legend(svg: &mut String) {
    let keys = [
        ("at-once", "answered within 1 s"),
        ("late", "answered later"),
        ("failed", "failed, or lost"),
        ("kill", "generators killed"),
        ("pause", "generators paused"),
    ];
    let mut x = 20;
    for (class, meaning) in keys {
        let place = format!("x=\"{x}\" y=\"70\" width=\"14\" height=\"14\"");
        let _ = writeln!(svg, "<rect class=\"{class}\" {place}/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"82\">{meaning}</text>", x + 20);
        // Wide enough for any font.
        x += 48 + meaning.len() * 8;
    }
}

fn cause(cause: OutageCause) -> &'static str {
    match cause {
        OutageCause::Kill => "kill",
        OutageCause::Pause => "pause",
    }
}

/// The picture in words.
fn description(report: &CompareReport) -> String {
    let mut said = format!("Outages of the generators: {}.", report.outages.len());
    for pair in &report.pairs {
        let Second { at_once, late, failed } = pair.total;
        let (name, asked, word) = (pair.design.name(), pair.asked, pair.design.failed());
        let _ = write!(
            said,
            " {name}: asked {asked}, answered within a second {at_once}, later {late}, {word} {failed}, doubled {}.",
            pair.doubled
        );
    }
    said
}

/// A number of tenths.
fn tenths(number: usize) -> String {
    format!("{}.{}", number / 10, number % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::figures::{CallerView, Design, Seen};

    #[test]
    fn bars_stand_on_each_other() {
        let view = |answered| CallerView { answered, ..CallerView::default() };
        let late = Some(Duration::from_secs(2));
        let requests = vec![view(Some(Duration::ZERO)), view(late), view(None), view(None)];
        let seen = Seen { requests, doubled: 0 };
        let pair = PairFigures::new(Design::Coupled, &seen, &[], 2);
        let mut svg = String::new();
        strip(&mut svg, &Frame { seconds: 2, most: 4 }, &pair, 100);
        let lowest = "<path class=\"at-once\" d=\"M216.0 184.0h324.0v-21.0h-324.0z\"/>";
        let highest = "<path class=\"failed\" d=\"M216.0 142.0h324.0v-42.0h-324.0z\"/>";
        assert!(svg.contains(lowest) && svg.contains(highest), "{svg}");
    }
}
