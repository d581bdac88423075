//! The commands that messages name as the cure. Only the program knows them: the engine serves any system.

use std::sync::OnceLock;

static COMMANDS: OnceLock<Commands> = OnceLock::new();

/// The commands by which an operator has the topology of a system declared.
#[derive(Clone, Copy, Debug)]
pub struct Commands {
    /// Creates what is missing, such as `shop declare`.
    pub declare: &'static str,
    /// Runs a [`Reconciler`](crate::Reconciler), such as `shop declare --watch`.
    pub reconcile: &'static str,
}

/// Has the messages of this process name these commands. Without them, the messages say what such a command
/// has to do. Only the first call counts.
pub fn name_commands(commands: Commands) {
    let _ = COMMANDS.set(commands);
}

/// The command, or program, that creates what is missing.
pub(crate) fn declare() -> String {
    named(|commands| commands.declare, "a program that declares it")
}

/// The command, or program, that keeps the topology as it should be.
pub(crate) fn reconcile() -> String {
    named(|commands| commands.reconcile, "a program with a workqueue::Reconciler")
}

fn named(which: impl Fn(&Commands) -> &'static str, otherwise: &str) -> String {
    let command = COMMANDS.get().map(which);
    command.map_or_else(|| otherwise.to_owned(), |command| format!("`{command}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect_error::ClientEnded;

    #[test]
    fn message_names_the_command_of_its_program() {
        let is_named = |command: &str| {
            let said = ClientEnded.to_string();
            assert!(said.contains(&format!("Run {command}, which moves such a message")), "{said}");
        };
        is_named("a program with a workqueue::Reconciler");
        name_commands(Commands { declare: "shop declare", reconcile: "shop declare --watch" });
        is_named("`shop declare --watch`");
    }
}
