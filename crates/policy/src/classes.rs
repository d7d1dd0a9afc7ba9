//! Which programs are of which class: the data file `program-classes.txt`, parsed.
//!
//! A program is known by its name, which is enough for what packages shipped: where a package put it is not for users to
//! choose. What a rule lists by its content is known by the name that it is executed by.

use std::sync::LazyLock;

use domain::program_class::{ProgramClass, ProgramClasses};

/// The version of the data file that this code reads.
const VERSION: &str = "1";

/// The table that is built in.
static BUILT_IN: LazyLock<ProgramTable> = LazyLock::new(|| {
    // It is read by a test. Were it damaged even so, every program would be of every class.
    ProgramTable::parse(include_str!("../data/program-classes.txt")).unwrap_or_else(|_damaged| {
        ProgramTable::parse("version 1\nshell *\ninterpreter *\nenvironment *").unwrap_or_default()
    })
});

/// Patterns of programs, and names of environment variables.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProgramTable {
    patterns: Vec<(String, ProgramClasses)>,
    environment: Vec<String>,
}

impl ProgramTable {
    /// The table that is built in.
    pub fn built_in() -> &'static Self {
        &BUILT_IN
    }

    /// Reads a data file.
    ///
    /// # Errors
    /// A sentence that names the line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut table = Self::default();
        let lines = text.lines().zip(1..).map(|(line, number)| (line.trim(), number));
        let mut lines = lines.filter(|(line, _)| !line.is_empty() && !line.starts_with('#'));
        match lines.next().map(|(line, _)| line.split_once(' ')) {
            Some(Some(("version", VERSION))) => {}
            _other => return Err(format!("the file must begin with `version {VERSION}`")),
        }
        for (line, number) in lines {
            let mut words = line.split_ascii_whitespace();
            let kind = words.next().unwrap_or_default();
            let mut words = words.peekable();
            if words.peek().is_none() {
                return Err(format!("line {number} names nothing"));
            }
            if kind == "environment" {
                table.environment.extend(words.map(str::to_owned));
            } else {
                let class = ProgramClass::from_name(kind)
                    .ok_or_else(|| format!("line {number}: there is no class {kind:?}"))?;
                words.for_each(|pattern| table.add(pattern, class));
            }
        }
        Ok(table)
    }

    fn add(&mut self, pattern: &str, class: ProgramClass) {
        let class = ProgramClasses::from_iter([class]);
        match self.patterns.iter_mut().find(|(known, _)| known == pattern) {
            Some((_, classes)) => *classes = classes.union(class),
            None => self.patterns.push((pattern.to_owned(), class)),
        }
    }

    /// The classes of a program that lies at these absolute paths.
    pub fn classes<'a>(&self, paths: impl IntoIterator<Item = &'a [u8]>) -> ProgramClasses {
        paths.into_iter().fold(ProgramClasses::NONE, |classes, path| classes.union(self.classes_at(path)))
    }

    fn classes_at(&self, path: &[u8]) -> ProgramClasses {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        let is_meant = |pattern: &str| {
            let text = if pattern.contains('/') { path } else { name };
            !text.is_empty() && matches(pattern.as_bytes(), text)
        };
        let meant = self.patterns.iter().filter(|(pattern, _)| is_meant(pattern));
        meant.fold(ProgramClasses::NONE, |classes, (_, of)| classes.union(*of))
    }

    /// Whether an environment variable makes an interpreter run other code than it is told to.
    pub fn is_hostile(&self, variable: &[u8]) -> bool {
        self.environment.iter().any(|pattern| matches(pattern.as_bytes(), variable))
    }
}

/// Whether a pattern is about a text. Patterns are short, and are not from outside.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let Some((first, rest)) = pattern.split_first() else { return text.is_empty() };
    let stands_for = |byte: &u8| match first {
        b'*' => *byte != b'/',
        b'#' => byte.is_ascii_digit() || *byte == b'.',
        _ => false,
    };
    match first {
        b'*' | b'#' => {
            let most = text.iter().take_while(|byte| stands_for(byte)).count();
            (0..=most).any(|length| text.get(length..).is_some_and(|text| matches(rest, text)))
        }
        exact => text.split_first().is_some_and(|(byte, text)| byte == exact && matches(rest, text)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The classes at a path, by their names.
    fn classes(path: &str) -> String {
        let found = ProgramTable::built_in().classes([path.as_bytes()]);
        let found = ProgramClass::ALL.into_iter().filter(|class| found.contains(*class));
        found.map(ProgramClass::name).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_table_that_is_built_in_is_read() {
        let table = ProgramTable::parse(include_str!("../data/program-classes.txt")).unwrap();
        assert_eq!(&table, ProgramTable::built_in());
        for class in ProgramClass::ALL {
            assert!(table.patterns.iter().any(|(_, classes)| classes.contains(class)), "{}", class.name());
        }
    }

    #[test]
    fn programs_of_distributions_are_known() {
        for (path, expected) in [
            ("/bin/dash", "shell"),
            ("/usr/bin/bash", "shell"),
            ("/usr/bin/mawk", ""),
            ("/bin/busybox", "shell dual-use"),
            ("/usr/bin/python3.11", "interpreter"),
            ("/usr/bin/python3", "interpreter"),
            ("/opt/own/bin/python3.13t", "interpreter"),
            ("/usr/bin/python3-config", ""),
            ("/usr/bin/perl5.36.0", "interpreter"),
            ("/usr/bin/perldoc", ""),
            ("/usr/bin/ruby3.1", "interpreter jit"),
            ("/usr/bin/node", "interpreter jit"),
            ("/usr/bin/php8.2", "interpreter jit"),
            ("/usr/sbin/php-fpm8.2", "jit"),
            ("/usr/bin/lua5.4", "interpreter"),
            ("/usr/lib/jvm/java-17-openjdk-amd64/bin/java", "interpreter jit"),
            ("/usr/lib/jvm/java-17-openjdk-amd64/bin/javac", "dual-use"),
            ("/usr/share/dotnet/dotnet", "interpreter jit"),
            ("/usr/bin/gdb", "dual-use"),
            ("/usr/bin/strace", "dual-use"),
            ("/usr/bin/x86_64-linux-gnu-gcc-12", "dual-use"),
            ("/usr/bin/x86_64-linux-gnu-ld.bfd", "dual-use"),
            ("/usr/bin/x86_64-linux-gnu-gcc-ar-12", ""),
            ("/usr/lib/gcc/x86_64-linux-gnu/12/cc1", "dual-use"),
            ("/usr/bin/socat1", "dual-use"),
            ("/usr/bin/nc.openbsd", "dual-use"),
            ("/usr/bin/qemu-x86_64-static", "jit dual-use"),
            ("/usr/bin/podman", "dual-use"),
            ("/usr/bin/env", "launcher"),
            ("/usr/bin/ls", ""),
            ("/usr/lib/x86_64-linux-gnu/libc.so.6", ""),
            ("/usr/bin/python3/x", ""),
            ("/usr/bin/", ""),
            ("", ""),
        ] {
            assert_eq!(classes(path), expected, "{path}");
        }
    }

    #[test]
    fn what_keeps_a_machine_alive_is_not_dual_use() {
        for path in [
            "/lib/systemd/systemd",
            "/usr/sbin/sshd",
            "/usr/bin/sudo",
            "/usr/bin/dpkg",
            "/usr/bin/dbus-daemon",
            "/usr/bin/bash",
            "/sbin/modprobe",
            "/lib64/ld-linux-x86-64.so.2",
        ] {
            assert!(!classes(path).contains("dual-use"), "{path}");
        }
    }

    #[test]
    fn several_places_have_the_classes_of_all() {
        let places = [&b"/usr/bin/x"[..], b"/usr/bin/strace", b"/usr/bin/node"];
        let found = ProgramTable::built_in().classes(places);
        assert_eq!(found.bits(), 0b1110);
    }

    #[test]
    fn hostile_variables_are_known_by_their_whole_name() {
        let table = ProgramTable::built_in();
        for name in ["LD_PRELOAD", "PYTHONPATH", "BASH_ENV", "BASH_FUNC_ls%%", "LUA_INIT_5_4", "NODE_OPTIONS"]
        {
            assert!(table.is_hostile(name.as_bytes()), "{name}");
        }
        for name in ["PATH", "HOME", "LD_PRELOADED", "XLD_PRELOAD", "LANG", ""] {
            assert!(!table.is_hostile(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn a_faulty_file_is_told_by_line() {
        let fault = |text: &str| ProgramTable::parse(text).unwrap_err();
        assert_eq!(fault(""), "the file must begin with `version 1`");
        assert_eq!(fault("# x\nversion 2\n"), "the file must begin with `version 1`");
        assert_eq!(fault("version 1\n\nshel bash\n"), "line 3: there is no class \"shel\"");
        assert_eq!(fault("version 1\nshell\n"), "line 2 names nothing");
    }

    #[test]
    fn whole_paths_are_patterns_too() {
        let table = ProgramTable::parse("version 1\njit /opt/*/bin/x#\n").unwrap();
        let is_jit = |path: &str| table.classes([path.as_bytes()]).contains(ProgramClass::Jit);
        assert!(is_jit("/opt/a/bin/x1.2") && is_jit("/opt//bin/x"));
        assert!(!is_jit("/opt/a/b/bin/x") && !is_jit("/x") && !is_jit("/opt/a/bin/xy"));
    }

    proptest! {
        #[test]
        fn any_file_and_any_path_is_borne(text in "[a-z#* \n/0-9.]{0,80}", path in "[a-z#*/0-9.]{0,40}") {
            if let Ok(table) = ProgramTable::parse(&format!("version 1\n{text}")) {
                let _ = table.classes([path.as_bytes()]);
            }
            let _ = ProgramTable::built_in().classes([path.as_bytes()]);
        }
    }
}
