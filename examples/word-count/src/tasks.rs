//! The tasks of a worker, by name. Each makes a value from a page, which fits into a message.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZeroU32;
use std::time::Duration;

use html5gum::{DefaultEmitter, HtmlString, Token, Tokenizer};
use serde_json::{Value, json};
use unicode_segmentation::UnicodeSegmentation;
use workqueue::RetryPolicy;

use crate::web::Page;

/// The most bytes of words or links in a result: a message has at most 256 KiB.
const MOST_BYTES: usize = 100 << 10;

/// The most links of a page that are resolved: each may be as long as the address of the page.
const MOST_LINKS: usize = 10_000;

/// A kind of task.
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// The most attempts.
    pub attempts: u64,
    /// The time limit for an attempt.
    pub timeout: Duration,
    /// The most tasks of this kind that all workers start in a second.
    pub per_second: NonZeroU32,
    /// Makes the result from a page.
    pub read: fn(&Page) -> Value,
}

/// The tasks.
pub static TASKS: [Kind; 3] = [
    Kind { name: "word_count", attempts: 5, timeout: secs(60), per_second: rate(50), read: words },
    Kind { name: "links", attempts: 3, timeout: secs(30), per_second: rate(20), read: links },
    Kind { name: "page_title", attempts: 3, timeout: secs(15), per_second: rate(100), read: title },
];

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const fn rate(per_second: u32) -> NonZeroU32 {
    NonZeroU32::new(per_second).expect("it is above zero")
}

impl Kind {
    /// The task with this name.
    ///
    /// # Errors
    ///
    /// If there is no task of this name. The error has the names of all.
    pub fn named(name: &str) -> Result<&'static Self, String> {
        TASKS.iter().find(|kind| kind.name == name).ok_or_else(|| {
            let known: Vec<_> = TASKS.iter().map(|kind| kind.name).collect();
            format!("there is no task '{name:.100}'; known are {}", known.join(", "))
        })
    }

    /// Its retry policy. Waiting for a permit spends no attempt while the queue has room.
    #[must_use]
    pub fn policy(&self) -> RetryPolicy {
        RetryPolicy {
            max_attempts: Some(self.attempts),
            first_delay: secs(1),
            timeout: Some(self.timeout),
            snoozes_count: false,
            ..RetryPolicy::default()
        }
    }
}

/// The parts of a page. They come from a tokenizer, because with a hostile page the time to build a tree can grow with
/// the square of the nesting.
#[derive(Default)]
struct Parts {
    text: String,
    title: Option<String>,
    links: Vec<String>,
}

impl Parts {
    fn of(page: &Page) -> Self {
        let mut parts = Self::default();
        if !page.is_html {
            return Self { text: page.text.clone(), ..parts };
        }
        let mut emitter = DefaultEmitter::default();
        // Like a browser: the content of a script has no tags.
        emitter.naively_switch_states(true);
        let string = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
        let mut within = HtmlString::default();
        for Ok(token) in Tokenizer::new_with_emitter(&page.text, emitter) {
            match (token, within.as_slice()) {
                (Token::StartTag(tag), _) => {
                    let link = tag.attributes.get(&b"href"[..]).filter(|_| tag.name == b"a");
                    parts.links.extend(link.map(|link| string(link)));
                    within = tag.name;
                }
                (Token::EndTag(_), _) => within.clear(),
                (Token::String(_), b"script" | b"style") => {}
                (Token::String(text), b"title") => {
                    parts.title = parts.title.or(Some(string(&text)));
                }
                (Token::String(text), _) => parts.text.extend([&string(&text), "\n"]),
                _ => {}
            }
        }
        parts
    }
}

/// The most frequent words, in lower case, with their counts.
fn words(page: &Page) -> Value {
    let parts = Parts::of(page);
    let mut counts = HashMap::<String, u64>::new();
    for word in parts.text.unicode_words() {
        *counts.entry(word.to_lowercase()).or_default() += 1;
    }
    let (total, distinct) = (counts.values().sum::<u64>(), counts.len());
    let mut words: Vec<_> = counts.into_iter().collect();
    words.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let words = within_a_message(words, |(word, _)| word.len() + 20);
    json!({ "total": total, "distinct": distinct, "words": words })
}

/// The links of the page, without duplicates.
fn links(page: &Page) -> Value {
    let links = Parts::of(page).links;
    let urls = links.iter().take(MOST_LINKS).filter_map(|link| page.url.join(link).ok());
    let urls: BTreeSet<String> = urls.filter(url::Url::has_host).map(String::from).collect();
    let total = urls.len();
    json!({ "total": total, "links": within_a_message(urls, |url| url.len() + 3) })
}

/// The title of the page, or null.
fn title(page: &Page) -> Value {
    let title = Parts::of(page).title.map(|title| {
        let words: Vec<_> = title.split_whitespace().collect();
        words.join(" ").chars().take(300).collect::<String>()
    });
    json!({ "title": title })
}

/// The first items, as many as fit into a message.
fn within_a_message<T>(all: impl IntoIterator<Item = T>, size: impl Fn(&T) -> usize) -> Vec<T> {
    let mut room = Some(MOST_BYTES);
    let fits = |item: &T| {
        room = room.and_then(|room| room.checked_sub(size(item)));
        room.is_some()
    };
    all.into_iter().take_while(fits).collect()
}
