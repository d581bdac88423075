//! The glossary of the course.

use std::collections::BTreeMap;

use serde::Serialize;

use super::markdown::{Element, elements};

/// A term of the field.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Term {
    title: String,
    content: Vec<Element>,
}

/// The terms by their anchors.
pub(super) fn terms(markdown: &str) -> BTreeMap<String, Term> {
    let mut terms = Vec::<Term>::new();
    for element in elements(markdown) {
        match element.tag {
            "h2" => terms.push(Term { title: element.text(), content: vec![] }),
            _ => {
                if let Some(term) = terms.last_mut() {
                    term.content.push(element);
                }
            }
        }
    }
    terms.into_iter().map(|term| (anchor(&term.title), term)).collect()
}

/// The anchor of a heading, as forges make it.
fn anchor(title: &str) -> String {
    let title = title.to_lowercase().replace(' ', "-");
    title.chars().filter(|it| it.is_alphanumeric() || *it == '-').collect()
}
