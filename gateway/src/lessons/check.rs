//! The condition under which a step is done: an expression over the flow in CEL, the Common Expression Language.

use std::collections::BTreeSet;

use cel::common::ast::Expr;
use cel::{Context, IdedExpr, Program, Value};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value as Json, json};

/// An expression that is true or false.
#[derive(Debug)]
pub struct Check {
    source: String,
    program: Program,
    /// The fields that it reads, such as `requests.waiting`.
    reads: BTreeSet<String>,
    /// The lists that it filters, such as `replicas`, each with the expression of the filter.
    filters: Vec<(String, IdedExpr)>,
}

impl Check {
    /// Parses an expression.
    ///
    /// # Errors
    ///
    /// If it is no expression.
    pub fn parse(source: &str) -> Result<Self, String> {
        let program = Program::compile(source).map_err(|error| format!("{source}: {error}"))?;
        let (mut reads, mut filters) = (BTreeSet::new(), Vec::new());
        fields(program.expression(), &mut reads, &mut filters);
        Ok(Self { source: source.to_owned(), program, reads, filters })
    }

    /// The expression.
    #[cfg(test)]
    pub(super) fn source(&self) -> &str {
        &self.source
    }

    /// Whether it reads the tally that a command prints.
    #[must_use]
    pub fn reads_tally(&self) -> bool {
        self.program.references().has_variable("tally")
    }

    /// Whether it holds for these variables.
    ///
    /// # Errors
    ///
    /// If it reads a variable that does not exist, or is neither true nor false.
    pub fn holds(&self, variables: &Map<String, Json>) -> Result<bool, String> {
        match self.program.execute(&context(variables)) {
            Ok(Value::Bool(holds)) => Ok(holds),
            Ok(other) => Err(format!("{}: {other:?} is neither true nor false", self.source)),
            Err(error) => Err(format!("{}: {error}", self.source)),
        }
    }

    /// The part of these variables that it compares with later ones: what it reads of `was`, each a single value; and
    /// the generators that are ready. None if these variables lack a part.
    #[must_use]
    pub(super) fn baseline(&self, variables: &Map<String, Json>) -> Option<Map<String, Json>> {
        let mut baseline = Json::Object(Map::new());
        for path in self.reads.iter().filter_map(|field| field.strip_prefix("was.")) {
            let value = find(variables, path).filter(|it| !it.is_object() && !it.is_array())?;
            *path.split('.').fold(&mut baseline, |it, part| &mut it[part]) = value.clone();
        }
        if self.reads.contains("new_generators") {
            let ready = ready_generators(variables).map(|it| {
                let id = it["id"].as_str()?;
                Some(json!({ "service": "generator", "state": "ready", "id": id }))
            });
            baseline["replicas"] = ready.collect::<Option<Json>>()?;
        }
        baseline.as_object().cloned()
    }

    /// The baseline that a client sends back. None if it is no baseline of this check.
    #[must_use]
    pub(super) fn restore(&self, baseline: &str) -> Option<Map<String, Json>> {
        let was = serde_json::from_str(baseline).ok()?;
        self.baseline(&was).filter(|baseline| *baseline == was)
    }

    /// The values that it reads, in words: `generators 0, REQUESTS 37 waiting, found 2 among 8 last requests`.
    #[must_use]
    pub fn saw(&self, variables: &Map<String, Json>) -> String {
        let mut said = Vec::new();
        let mut queue_before = "";
        for field in self.reads.iter().filter(|field| !field.starts_with("was.")) {
            let value = find(variables, field);
            let Some(words) = value.and_then(|value| words(field, value)) else { continue };
            let queue = field.split_once('.').map_or("", |(first, _)| first);
            let is_queue = QUEUES.contains(&queue);
            if is_queue && queue != queue_before {
                said.push(format!("{} {words}", queue.to_uppercase()));
            } else {
                said.push(words);
            }
            queue_before = queue;
        }
        let context = context(variables);
        for (list, filter) in &self.filters {
            if let (Ok(Value::List(found)), Some(all)) =
                (Value::resolve(filter, &context), variables.get(list).and_then(Json::as_array))
            {
                said.push(format!("found {} among {}", found.len(), counted(list, all)));
            }
        }
        said.join(", ")
    }
}

impl Serialize for Check {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.source)
    }
}

/// The value at a path, such as `requests.high.waiting`.
fn find<'a>(variables: &'a Map<String, Json>, path: &str) -> Option<&'a Json> {
    let mut parts = path.split('.');
    let first = variables.get(parts.next()?)?;
    parts.try_fold(first, |it, part| it.get(part))
}

/// The variables of a check, from an update of the flow. None before the first snapshot.
#[must_use]
pub(super) fn variables(update: &Json) -> Option<Map<String, Json>> {
    let mut variables = update.get("flow")?.as_object()?.clone();
    let queues = variables.remove("queues")?;
    for queue in queues.as_array()? {
        let mut queue = queue.as_object()?.clone();
        for lane in queue.remove("lanes")?.as_array()? {
            queue.insert(lane["priority"].as_str()?.to_owned(), lane.clone());
        }
        let name = queue.get("name")?.as_str()?.to_lowercase();
        variables.insert(name, Json::Object(queue));
    }
    if !variables.contains_key("requests") {
        return None;
    }
    let versions = ready_generators(&variables).map(|it| it["version"].clone()).collect();
    variables.insert("generator_versions".to_owned(), versions);
    variables.insert("broker".to_owned(), (update["trouble"]["kind"] != "silent").into());
    // From the point, which counts no replicas while the broker does not answer.
    for service in ["requestors", "generators"] {
        variables.insert(service.to_owned(), update["point"][service].clone());
    }
    Some(variables)
}

/// Adds those at the beginning of the step, as `was`, and the number of generators that have become ready since.
#[must_use]
pub(super) fn since(was: &Map<String, Json>, mut now: Map<String, Json>) -> Map<String, Json> {
    let is_new = |it: &&Json| ready_generators(was).all(|old| old["id"] != it["id"]);
    let new = ready_generators(&now).filter(is_new).count();
    now.insert("new_generators".to_owned(), new.into());
    now.insert("was".to_owned(), Json::Object(was.clone()));
    now
}

fn ready_generators(variables: &Map<String, Json>) -> impl Iterator<Item = &Json> {
    let replicas = variables.get("replicas").and_then(Json::as_array).into_iter().flatten();
    replicas.filter(|it| it["service"] == "generator" && it["state"] == "ready")
}

/// The names of the queues in an expression.
const QUEUES: [&str; 4] = ["requests", "responses", "acknowledgments", "schedules"];

/// The value of a field in the words of the page, without the name of its queue.
fn words(field: &str, value: &Json) -> Option<String> {
    let (path, name) = field.rsplit_once('.').unwrap_or(("", field));
    let rounded = |digits| value.as_f64().map(|it| format!("{it:.digits$}"));
    Some(match (name, value) {
        (_, Json::Object(_)) => return None,
        ("generator_versions", Json::Array(all)) => {
            let all: Vec<_> = all.iter().filter_map(Json::as_str).collect();
            format!("generators of version {}", all.join(" and "))
        }
        (_, Json::Array(all)) => counted(name, all),
        ("broker", Json::Bool(answers)) => {
            format!("broker {}", if *answers { "ready" } else { "away" })
        }
        ("full", Json::Bool(full)) => if *full { "full" } else { "not full" }.to_owned(),
        ("paused_until", Json::Null) => "not paused".to_owned(),
        ("paused_until", _) => "paused".to_owned(),
        ("arrival_rate", _) => format!("{}/s in", rounded(1)?),
        ("departure_rate", _) => format!("{}/s out", rounded(1)?),
        ("median_ms", _) => {
            let stage = path.rsplit_once('.').map_or("", |(_, stage)| stage);
            format!("{stage} in {} ms (median)", rounded(1)?).trim_start().to_owned()
        }
        ("waiting" | "in_flight" | "scheduled", _) => {
            let lane = path.split_once('.').map(|(_, lane)| format!("{lane} ")).unwrap_or_default();
            format!("{lane}{value} {}", name.replace('_', " "))
        }
        // A tally of several runs has a part for each.
        _ => {
            let part =
                path.strip_prefix("tally.").map(|part| format!("{part}: ")).unwrap_or_default();
            format!("{part}{} {value}", name.replace('_', " "))
        }
    })
}

/// The number of items of a list.
fn counted(name: &str, all: &[Json]) -> String {
    let name = if name == "last" { "last requests" } else { name };
    format!("{} {name}", all.len())
}

fn context(variables: &Map<String, Json>) -> Context<'static, 'static> {
    let mut context = Context::default();
    for (name, value) in variables {
        context.add_variable_from_value(name, cel_value(value));
    }
    context
}

/// All whole numbers are of one type, so that they can be added.
fn cel_value(value: &Json) -> Value {
    match value {
        Json::Null => Value::Null,
        Json::Bool(value) => (*value).into(),
        Json::Number(number) => match number.as_i64() {
            Some(whole) => whole.into(),
            None => number.as_f64().unwrap_or_default().into(),
        },
        Json::String(text) => text.clone().into(),
        Json::Array(values) => values.iter().map(cel_value).collect::<Vec<_>>().into(),
        Json::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.clone(), cel_value(value)));
            fields.collect::<std::collections::HashMap<_, _>>().into()
        }
    }
}

/// Collects the fields that an expression reads, with their full paths, and the lists that it filters.
fn fields(
    expression: &IdedExpr,
    found: &mut BTreeSet<String>,
    filters: &mut Vec<(String, IdedExpr)>,
) {
    if let Some(path) = path(&expression.expr) {
        found.insert(path);
        return;
    }
    match &expression.expr {
        Expr::Call(call) => {
            call.target.iter().for_each(|target| fields(target, found, filters));
            call.args.iter().for_each(|argument| fields(argument, found, filters));
        }
        Expr::Comprehension(each) => match path(&each.iter_range.expr) {
            // The result of the macros `filter` and `map` is a list, and no lesson uses `map`.
            Some(list) if matches!(each.accu_init.expr, Expr::List(_)) => {
                filters.push((list, expression.clone()));
            }
            _ => fields(&each.iter_range, found, filters),
        },
        Expr::Select(select) => fields(&select.operand, found, filters),
        _ => {}
    }
}

fn path(expression: &Expr) -> Option<String> {
    match expression {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(select) => Some(format!("{}.{}", path(&select.operand.expr)?, select.field)),
        _ => None,
    }
}
