//! Settings that no program reads any more: set in the environment, they would be missed.

use std::env;
use std::ffi::OsString;

use clap::Parser;
use clap::error::ErrorKind;

/// The settings of this program, from its command line and the environment. Ends the process where
/// they are wrong, or where the environment sets one that is `retired`: its name, and what to do instead.
#[must_use]
pub fn parse<S: Parser>(retired: &[(&str, &str)]) -> S {
    if let Some(refusal) = refusal(retired, |name| env::var_os(name)) {
        S::command().error(ErrorKind::UnknownArgument, refusal).exit();
    }
    S::parse()
}

/// What is wrong with the environment, if it sets a retired setting to something.
fn refusal(retired: &[(&str, &str)], get: impl Fn(&str) -> Option<OsString>) -> Option<String> {
    let is_set = |name| get(name).is_some_and(|value| !value.is_empty());
    let (name, instead) = retired.iter().find(|(name, _)| is_set(name))?;
    Some(format!("{name} is set, and is not read any more: {instead}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retired_setting_names_its_successor_unless_it_is_empty() {
        const RETIRED: &[(&str, &str)] = &[("OLD", "set NEW"), ("GONE", "remove it")];
        let with = |name: &'static str, value: &'static str| {
            refusal(RETIRED, move |asked| (asked == name).then(|| value.into()))
        };
        assert_eq!(with("NEW", "1"), None);
        assert_eq!(with("OLD", ""), None);
        assert_eq!(with("OLD", "1").unwrap(), "OLD is set, and is not read any more: set NEW");
        assert!(with("GONE", "0").unwrap().ends_with("remove it"));
    }
}
