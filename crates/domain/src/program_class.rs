//! Classes of programs: what a program can do with other code than its own.

/// One class. A program may be of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProgramClass {
    /// A shell: what it reads is not judged below the level `strict`.
    Shell,
    /// Any other program that runs what it reads: Python, Perl, a Java machine.
    Interpreter,
    /// It makes machine code while it runs.
    Jit,
    /// With it one can do nearly everything: debuggers, compilers, relays, container runtimes.
    DualUse,
    /// It only starts the program that its arguments name, in its own place: `env`.
    Launcher,
}

impl ProgramClass {
    /// Every class.
    pub const ALL: [Self; 5] = [Self::Shell, Self::Interpreter, Self::Jit, Self::DualUse, Self::Launcher];

    /// The class's name in the data file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Interpreter => "interpreter",
            Self::Jit => "jit",
            Self::DualUse => "dual-use",
            Self::Launcher => "launcher",
        }
    }

    /// The class with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|class| class.name() == name)
    }

    fn bit(self) -> u8 {
        match self {
            Self::Shell => 1,
            Self::Interpreter => 1 << 1,
            Self::Jit => 1 << 2,
            Self::DualUse => 1 << 3,
            Self::Launcher => 1 << 4,
        }
    }
}

/// A set of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ProgramClasses(u8);

impl ProgramClasses {
    /// No class: a program that runs nothing but itself, as far as is known.
    pub const NONE: Self = Self(0);

    /// Whether a program is of this class.
    pub fn contains(self, class: ProgramClass) -> bool {
        self.0 & class.bit() != 0
    }

    /// The classes of both sets.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// One bit a class, in the order of [`ProgramClass::ALL`] from the lowest.
    pub fn bits(self) -> u8 {
        self.0
    }
}

impl FromIterator<ProgramClass> for ProgramClasses {
    fn from_iter<I: IntoIterator<Item = ProgramClass>>(classes: I) -> Self {
        Self(classes.into_iter().fold(0, |bits, class| bits | class.bit()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_a_set_with_a_bit_each() {
        for (index, class) in ProgramClass::ALL.into_iter().enumerate() {
            let alone = ProgramClasses::from_iter([class]);
            assert_eq!((alone.bits(), ProgramClass::from_name(class.name())), (1 << index, Some(class)));
            assert!(ProgramClass::ALL.iter().all(|other| alone.contains(*other) == (*other == class)));
        }
        assert_eq!(ProgramClass::ALL.into_iter().collect::<ProgramClasses>().bits(), 0b1_1111);
        assert_eq!(ProgramClasses::NONE, ProgramClasses::default());
    }
}
