//! How a program starts, as a mechanism that holds a restriction sees it.

/// Who has a program started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Starter {
    /// Anyone, as far as can be seen.
    #[default]
    Anyone,
    /// The kernel, for the `#!` line of a script that may run itself.
    ListedScript,
    /// A service that the system's own manager started, and nobody logged in in between.
    SystemUnit,
}

/// What is seen of a start before the program runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProgramStart {
    /// Who has it started.
    pub starter: Starter,
    /// Its arguments, the first being its own name; none when they cannot be read, or not wholly.
    pub arguments: Option<Vec<Vec<u8>>>,
    /// Its environment, `NAME=value`, of which the values may be cut off; none as above.
    pub environment: Option<Vec<Vec<u8>>>,
}
