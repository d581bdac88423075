//! A lesson: a page of Markdown whose headings and code blocks have a fixed meaning.

use serde::Serialize;

use super::check::Check;
use super::markdown::{Element, Node, elements};

/// The headings of a lesson, in their order.
pub(super) const HEADINGS: [&str; 8] =
    ["Set the scene", "Predict", "Do", "See", "Why", "In the code", "Try this", "Elsewhere"];

/// A lesson.
#[derive(Debug, Serialize)]
pub struct Lesson {
    /// Its number, from 0.
    pub number: usize,
    /// Its title.
    pub title: String,
    /// The questions that it answers.
    pub question: Vec<Element>,
    /// Its sections.
    pub sections: Vec<Section>,
}

/// A heading and the content below it.
#[derive(Debug, Serialize)]
pub struct Section {
    /// The heading.
    pub title: &'static str,
    /// The text.
    pub content: Vec<Element>,
    /// The commands that set the scene.
    pub commands: Commands,
    /// The steps, in their order.
    pub steps: Vec<Step>,
}

/// The commands for each way to run the system.
#[derive(Debug, Default, Serialize)]
pub struct Commands {
    /// With `cargo lab`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lab: Option<String>,
    /// With Docker Compose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compose: Option<String>,
    /// On Kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubectl: Option<String>,
}

/// One step.
#[derive(Debug, Default, Serialize)]
pub struct Step {
    /// The instruction.
    pub content: Vec<Element>,
    /// The commands of the step.
    pub commands: Commands,
    /// The output of the commands under the lab, with `…` for variable parts.
    pub prints: Option<String>,
    /// The condition under which it is done.
    pub check: Option<Check>,
    /// Whether only the lab can check it, because the check reads the output of the command.
    pub lab_only: bool,
    /// A hint.
    pub hint: Option<String>,
}

impl Lesson {
    /// Parses a lesson.
    ///
    /// # Errors
    ///
    /// If it does not have the form of a lesson.
    pub fn parse(markdown: &str) -> Result<Self, String> {
        let mut parts = vec![];
        for element in elements(markdown) {
            match element.tag {
                "h1" | "h2" => parts.push((element.text(), vec![])),
                _ => parts.last_mut().ok_or("it begins without a title")?.1.push(element),
            }
        }
        let mut parts = parts.into_iter();
        let (title, question) = parts.next().ok_or("it is empty")?;
        let (number, title) = title.split_once(". ").ok_or("its title has no number")?;
        let number = number.parse().map_err(|_| format!("{number} is not a number"))?;
        let mut sections = Vec::new();
        for heading in HEADINGS {
            match parts.next() {
                Some((found, content)) if found == heading => {
                    sections.push(Section::new(heading, content)?);
                }
                Some((found, _)) => {
                    return Err(format!("{found} stands where {heading} is to stand"));
                }
                None => return Err(format!("{heading} is missing")),
            }
        }
        if let Some((further, _)) = parts.next() {
            return Err(format!("{further} is a heading too many"));
        }
        Ok(Self { number, title: title.to_owned(), question, sections })
    }

    /// The commands that set its scene.
    #[must_use]
    pub fn scene(&self) -> &Commands {
        &self.sections[0].commands
    }

    /// Its steps, in their order.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.sections.iter().flat_map(|section| &section.steps)
    }

    /// The step with this number, from 1, if there is one.
    #[must_use]
    pub fn step(&self, number: usize) -> Option<&Step> {
        self.steps().nth(number.checked_sub(1)?)
    }
}

impl Section {
    fn new(title: &'static str, elements: Vec<Element>) -> Result<Self, String> {
        let mut section =
            Self { title, content: vec![], commands: Commands::default(), steps: vec![] };
        for element in elements {
            match element.tag {
                "ol" if title == "Do" => {
                    for (number, item) in (1..).zip(element.children) {
                        let Node::Element(item) = item else { continue };
                        let step = Step::new(item).map_err(|why| format!("step {number}: {why}"));
                        section.steps.push(step?);
                    }
                }
                "pre" if title == "Set the scene" => match section.commands.place(&element) {
                    Some(command) => *command = Some(code(&element)),
                    None => section.content.push(element),
                },
                _ => section.content.push(element),
            }
        }
        Ok(section)
    }
}

impl Commands {
    /// The field for the commands of this block, if it is a block of commands.
    fn place(&mut self, block: &Element) -> Option<&mut Option<String>> {
        match block.info.as_deref() {
            Some("lab") => Some(&mut self.lab),
            Some("compose") => Some(&mut self.compose),
            Some("kubectl") => Some(&mut self.kubectl),
            _ => None,
        }
    }
}

impl Step {
    fn new(item: Element) -> Result<Self, String> {
        let mut step = Self::default();
        let (mut words, mut check) = (vec![], None);
        for child in item.children {
            match child {
                Node::Element(block) if block.tag == "pre" => match block.info.as_deref() {
                    Some("check") => check = Some(code(&block)),
                    Some("prints") => step.prints = Some(code(&block)),
                    Some("hint") => step.hint = Some(code(&block)),
                    _ => match step.commands.place(&block) {
                        Some(command) => *command = Some(code(&block)),
                        None => return Err("it has a block that is for nothing".to_owned()),
                    },
                },
                Node::Element(element) if is_block(&element) => step.content.push(element),
                inline => words.push(inline),
            }
        }
        if !words.is_empty() {
            step.content.insert(0, Element { tag: "p", children: words, ..Element::default() });
        }
        step.check = check.as_deref().map(Check::parse).transpose()?;
        step.lab_only = step.check.as_ref().is_some_and(Check::reads_tally);
        Ok(step)
    }
}

/// Whether this is a block, and not part of a line.
fn is_block(element: &Element) -> bool {
    !["em", "strong", "code", "a", "img"].contains(&element.tag)
}

/// The text of a code block, without the end of its last line.
fn code(block: &Element) -> String {
    block.text().trim_end().to_owned()
}
