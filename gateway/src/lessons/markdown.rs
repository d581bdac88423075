//! Markdown as a tree of elements, from which the page makes its own elements. So no text can become HTML there.

use pulldown_cmark::{CodeBlockKind, Event, HeadingLevel, Options, Parser, Tag};
use serde::Serialize;

/// A part of a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Node {
    /// Text.
    Text(String),
    /// An element with its content.
    Element(Element),
}

/// An element of HTML.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Element {
    /// Its name: h1 to h4, p, em, strong, code, pre, a, img, ul, ol, li, table, thead, tr, th, td or blockquote.
    pub tag: &'static str,
    /// The target of a link, relative to the folder of the document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub href: Option<String>,
    /// The file of an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub src: Option<String>,
    /// The description of an image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alt: Option<String>,
    /// The language of a code block, or its meaning in a lesson.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub info: Option<String>,
    /// Its content.
    pub children: Vec<Node>,
}

impl Element {
    /// All text in it.
    pub fn text(&self) -> String {
        let of = |child: &Node| match child {
            Node::Text(text) => text.clone(),
            Node::Element(element) => element.text(),
        };
        self.children.iter().map(of).collect()
    }

    /// Calls this for each element in it, at any depth.
    #[cfg(test)]
    pub fn each(&self, call: &mut impl FnMut(&Self)) {
        for child in &self.children {
            if let Node::Element(element) = child {
                call(element);
                element.each(call);
            }
        }
    }
}

/// The elements of a document. HTML in it is text.
pub(super) fn elements(document: &str) -> Vec<Element> {
    let mut stack = vec![Element::default()];
    let mut in_head = false;
    for event in Parser::new_ext(document, Options::ENABLE_TABLES) {
        let node = match event {
            Event::Start(tag) => {
                in_head = matches!(tag, Tag::TableHead) || in_head && !matches!(tag, Tag::TableRow);
                stack.push(element(tag, in_head));
                continue;
            }
            Event::End(_) => Node::Element(ended(stack.pop().expect("what ends has begun"))),
            Event::Code(code) => {
                let children = vec![Node::Text(code.into_string())];
                Node::Element(Element { tag: "code", children, ..Element::default() })
            }
            Event::SoftBreak | Event::HardBreak => Node::Text(" ".to_owned()),
            Event::Text(text) | Event::Html(text) | Event::InlineHtml(text) => {
                Node::Text(text.into_string())
            }
            _ => continue,
        };
        stack.last_mut().expect("the document ends last").children.push(node);
    }
    let document = stack.swap_remove(0);
    let elements = document.children.into_iter().filter_map(|child| match child {
        Node::Element(element) => Some(element),
        Node::Text(_) => None,
    });
    elements.collect()
}

/// The element once its content is complete.
fn ended(mut element: Element) -> Element {
    match element.tag {
        "img" => {
            element.alt = Some(element.text());
            element.children.clear();
        }
        "thead" => {
            let children = std::mem::take(&mut element.children);
            element.children =
                vec![Node::Element(Element { tag: "tr", children, ..Element::default() })];
        }
        _ => {}
    }
    element
}

fn element(tag: Tag<'_>, in_head: bool) -> Element {
    let plain = |tag| Element { tag, ..Element::default() };
    match tag {
        Tag::Heading { level, .. } => plain(match level {
            HeadingLevel::H1 => "h1",
            HeadingLevel::H2 => "h2",
            HeadingLevel::H3 => "h3",
            _ => "h4",
        }),
        Tag::BlockQuote(_) => plain("blockquote"),
        Tag::CodeBlock(kind) => {
            let info = match kind {
                CodeBlockKind::Fenced(info) if !info.is_empty() => Some(info.into_string()),
                _ => None,
            };
            Element { info, ..plain("pre") }
        }
        Tag::List(start) => plain(if start.is_some() { "ol" } else { "ul" }),
        Tag::Item => plain("li"),
        Tag::Table(_) => plain("table"),
        Tag::TableHead => plain("thead"),
        Tag::TableRow => plain("tr"),
        Tag::TableCell => plain(if in_head { "th" } else { "td" }),
        Tag::Emphasis => plain("em"),
        Tag::Strong => plain("strong"),
        Tag::Link { dest_url, .. } => Element { href: Some(dest_url.into_string()), ..plain("a") },
        Tag::Image { dest_url, .. } => {
            Element { src: Some(dest_url.into_string()), ..plain("img") }
        }
        _ => plain("p"),
    }
}
