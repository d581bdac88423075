//! The commands that messages name as the remedy. The program sets them, because the engine serves any system.

use std::sync::OnceLock;

static COMMANDS: OnceLock<Commands> = OnceLock::new();

/// The commands by which an operator declares the topology of a system.
#[derive(Clone, Copy, Debug)]
pub struct Commands {
    /// Creates the missing streams and consumers, such as `shop declare`.
    pub declare: &'static str,
    /// Runs a [`Reconciler`](crate::Reconciler), such as `shop declare --watch`.
    pub reconcile: &'static str,
}

/// Sets the commands that the messages of this process name. Without them, the messages describe the task of such a
/// command. Only the first call counts.
pub fn name_commands(commands: Commands) {
    let _ = COMMANDS.set(commands);
}

/// The command, or a description of the program, that creates the missing streams and consumers.
pub(crate) fn declare() -> String {
    named(|commands| commands.declare, "a program that declares it")
}

/// The command, or a description of the program, that keeps the topology as declared.
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
