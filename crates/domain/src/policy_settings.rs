//! How an allow policy treats what a file's content alone does not decide: interpreters, memory, what already runs.
//!
//! Every setting has one name and its values have names ([`PolicySettings::entries`]): people write them, machines are
//! sent them signed, the store keeps them. What is at its default is left out of stored and signed forms, so a default,
//! once released, never changes.

use std::fmt;
use std::str::FromStr;

use crate::digest::{fmt_hex, parse_hex};

/// The longest text and the longest contact of a [`Notice`], in bytes.
pub const NOTICE_BYTES_MAX: usize = 256;
/// The most keys whose manifests one policy counts.
pub const MANIFEST_KEYS_MAX: usize = 8;

/// A set of named values.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub enum $name { $($(#[$variant_doc])* $variant,)+ }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The value's name. Stored and signed; never rename.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }

            /// The value with this name.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.name() == name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

choice! {
    /// What interpreters may read as code. Each level holds what the one before holds.
    Interpreters {
        /// A script needs to be listed when it is executed (`#!`); an interpreter that is listed runs whatever it reads.
        Open = "open",
        /// Interpreters that are no shells start only by `#!` of a listed script, or below a system unit.
        #[default]
        Default = "default",
        /// Interpreters, shells among them, start without hostile environment variables, and shells without code in their
        /// arguments.
        Strict = "strict",
    }
}

choice! {
    /// What becomes of executable memory that no file stands behind.
    AnonymousCode {
        /// It is allowed and reported.
        #[default]
        Audit = "audit",
        /// It is refused, except to programs of the class *JIT*.
        Deny = "deny",
    }
}

choice! {
    /// What becomes of programs that are not listed and run when the restriction begins.
    RunningPrograms {
        /// They run on and are reported.
        #[default]
        Report = "report",
        /// They are frozen until the restriction ends.
        Freeze = "freeze",
        /// They are killed.
        Kill = "kill",
    }
}

choice! {
    /// What becomes of containers. Programs that run in one run on at every value.
    Containers {
        /// As [`Containers::ByDigest`]: what runs in containers runs on, and what starts there is judged by its content.
        #[default]
        Existing = "existing",
        /// No program starts in any container.
        Block = "block",
        /// In any container, the programs start whose content a rule names.
        ByDigest = "by-digest",
    }
}

choice! {
    /// What becomes of packaged programs with which one can do nearly everything: debuggers, compilers, relays.
    DualUse {
        /// They are listed like any other packaged program.
        #[default]
        Keep = "keep",
        /// Only a rule lists them.
        Remove = "remove",
    }
}

choice! {
    /// What happens when a part of the survival set would not run.
    SurvivalCheck {
        /// The machine refuses the restriction, and says what would not run.
        #[default]
        Refuse = "refuse",
        /// The machine is restricted, and released by itself unless it is found alive in time.
        Force = "force",
    }
}

choice! {
    /// What a guard does.
    GuardMode {
        /// It refuses what it watches over, and reports it.
        #[default]
        Enforce = "enforce",
        /// It only reports.
        Audit = "audit",
        /// It does nothing.
        Off = "off",
    }
}

/// A watch over a way around the restriction that is no execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Guard {
    /// Opening a listed file for writing. It loses its label either way.
    WriteLabelled,
    /// Loading a kernel module that is not listed.
    KernelModules,
    /// Loading another kernel to go over to.
    Kexec,
    /// Attaching to another process, reading or writing its memory.
    Ptrace,
    /// Writing through any `/proc/*/mem`, one's own included.
    ProcMem,
    /// Writing to a block device that is mounted.
    BlockDevices,
    /// Registering an interpreter for a file format (`binfmt_misc`).
    Binfmt,
    /// Loading a BPF program.
    Bpf,
    /// Changing, moving or removing files of the agent and the gate.
    OwnFiles,
    /// Signals to the agent and the gate.
    OwnProcesses,
    /// Removing, replacing or writing the BPF programs and maps that hold the restriction.
    OwnBpf,
}

impl Guard {
    /// Every guard, in the order of [`Guard`].
    pub const ALL: [Self; 11] = [
        Self::WriteLabelled,
        Self::KernelModules,
        Self::Kexec,
        Self::Ptrace,
        Self::ProcMem,
        Self::BlockDevices,
        Self::Binfmt,
        Self::Bpf,
        Self::OwnFiles,
        Self::OwnProcesses,
        Self::OwnBpf,
    ];

    /// The guard's name. Stored and signed; never rename.
    pub fn name(self) -> &'static str {
        match self {
            Self::WriteLabelled => "write_labelled",
            Self::KernelModules => "kernel_modules",
            Self::Kexec => "kexec",
            Self::Ptrace => "ptrace",
            Self::ProcMem => "proc_mem",
            Self::BlockDevices => "block_devices",
            Self::Binfmt => "binfmt",
            Self::Bpf => "bpf",
            Self::OwnFiles => "own_files",
            Self::OwnProcesses => "own_processes",
            Self::OwnBpf => "own_bpf",
        }
    }

    /// The guard with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|guard| guard.name() == name)
    }

    /// What it does when the policy does not say. Programs update themselves and load BPF for good reasons, and what
    /// they write loses its label anyway: those are only reported.
    pub fn default_mode(self) -> GuardMode {
        match self {
            Self::WriteLabelled | Self::Bpf => GuardMode::Audit,
            Self::KernelModules
            | Self::Kexec
            | Self::Ptrace
            | Self::ProcMem
            | Self::BlockDevices
            | Self::Binfmt
            | Self::OwnFiles
            | Self::OwnProcesses
            | Self::OwnBpf => GuardMode::Enforce,
        }
    }
}

impl fmt::Display for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What each guard does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guards([GuardMode; Guard::ALL.len()]);

impl Guards {
    /// What one guard does.
    pub fn mode(&self, guard: Guard) -> GuardMode {
        self.0.get(guard as usize).copied().unwrap_or_default()
    }

    /// Tells one guard what to do.
    pub fn set(&mut self, guard: Guard, mode: GuardMode) {
        if let Some(place) = self.0.get_mut(guard as usize) {
            *place = mode;
        }
    }
}

impl Default for Guards {
    fn default() -> Self {
        Self(Guard::ALL.map(Guard::default_mode))
    }
}

/// What people on the machine are told while it is restricted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Notice {
    /// What is told; empty: Cordon's own words.
    pub text: String,
    /// Whom to turn to; may be empty.
    pub contact: String,
    /// Whether nobody is told anything.
    pub silent: bool,
}

/// A public key, Ed25519: contents count that a manifest lists which was signed with its private half.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ManifestKey(pub [u8; 32]);

impl fmt::Display for ManifestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_hex(&self.0, f)
    }
}

impl fmt::Debug for ManifestKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt_hex(&self.0, f)
    }
}

impl FromStr for ManifestKey {
    type Err = SettingError;

    /// Reads 64 hexadecimal digits of either case.
    fn from_str(text: &str) -> Result<Self, SettingError> {
        parse_hex(text).map(Self).ok_or_else(|| SettingError::ManifestKey(shortened(text)))
    }
}

/// All settings of an allow policy.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PolicySettings {
    /// What interpreters may read as code.
    pub interpreters: Interpreters,
    /// Executable memory without a file.
    pub anonymous_code: AnonymousCode,
    /// Unlisted programs that already run.
    pub running_programs: RunningPrograms,
    /// Containers.
    pub containers: Containers,
    /// Packaged programs with which one can do nearly everything.
    pub dual_use: DualUse,
    /// Whether what a package update brings while the machine is restricted is listed, as far as the metadata that the
    /// repository signed vouches for it.
    pub allow_updates: bool,
    /// A survival set that would not run.
    pub survival_check: SurvivalCheck,
    /// Whose signed manifests count, at most [`MANIFEST_KEYS_MAX`], sorted.
    pub manifest_keys: Vec<ManifestKey>,
    /// The guards.
    pub guards: Guards,
    /// What people on the machine are told.
    pub notice: Notice,
}

/// A setting that is not what can be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// No such setting.
    #[error("there is no setting {0:?}")]
    Unknown(String),
    /// No such value.
    #[error("{setting} {value:?} is not one of {possible}")]
    Value {
        /// The setting's name.
        setting: String,
        /// What was given.
        value: String,
        /// What is possible, with commas between.
        possible: String,
    },
    /// A value that nothing on the machine would hold: rather no such policy than one that promises it.
    #[error("{0} cannot be {1} yet: nothing on the machine would hold it")]
    Unheld(&'static str, &'static str),
    /// Text for people is too long, or could do more on a terminal than be read.
    #[error("{0} must be at most {NOTICE_BYTES_MAX} bytes on one line, without control characters")]
    Notice(&'static str),
    /// Not a key.
    #[error("{MANIFEST_KEYS} {0:?} is not 64 hexadecimal digits, as cordon manifest key prints them")]
    ManifestKey(String),
    /// More keys than one policy trusts.
    #[error("{MANIFEST_KEYS} must be at most {MANIFEST_KEYS_MAX}, none of them twice")]
    ManifestKeys,
}

/// The names of the settings; those of guards are `guards.` and the guard's.
const INTERPRETERS: &str = "interpreters";
const ANONYMOUS_CODE: &str = "anonymousCode";
const RUNNING_PROGRAMS: &str = "runningPrograms";
const CONTAINERS: &str = "containers";
const DUAL_USE: &str = "dualUse";
const ALLOW_UPDATES: &str = "allowUpdates";
const SURVIVAL_CHECK: &str = "survivalCheck";
const MANIFEST_KEYS: &str = "manifestKeys";
const GUARDS: &str = "guards.";
const NOTICE_TEXT: &str = "notice.text";
const NOTICE_CONTACT: &str = "notice.contact";
const NOTICE_SILENT: &str = "notice.silent";

impl PolicySettings {
    /// Every setting by its name with its value's name, in an order that does not change.
    pub fn entries(&self) -> Vec<(String, String)> {
        let Self {
            interpreters,
            anonymous_code,
            running_programs,
            containers,
            dual_use,
            allow_updates,
            survival_check,
            manifest_keys,
            guards,
            notice: Notice { text, contact, silent },
        } = self;
        let manifest_keys: Vec<_> = manifest_keys.iter().map(ManifestKey::to_string).collect();
        let entry = |name: &str, value: &dyn fmt::Display| (name.to_owned(), value.to_string());
        let mut entries = vec![
            entry(INTERPRETERS, interpreters),
            entry(ANONYMOUS_CODE, anonymous_code),
            entry(RUNNING_PROGRAMS, running_programs),
            entry(CONTAINERS, containers),
            entry(DUAL_USE, dual_use),
            entry(ALLOW_UPDATES, allow_updates),
            entry(SURVIVAL_CHECK, survival_check),
            entry(MANIFEST_KEYS, &manifest_keys.join(" ")),
        ];
        entries.extend(Guard::ALL.map(|guard| entry(&format!("{GUARDS}{guard}"), &guards.mode(guard))));
        entries.extend([
            entry(NOTICE_TEXT, text),
            entry(NOTICE_CONTACT, contact),
            entry(NOTICE_SILENT, silent),
        ]);
        entries
    }

    /// The entries that are not at their default: the form that is signed and stored.
    pub fn entries_set(&self) -> Vec<(String, String)> {
        let defaults = Self::default().entries();
        let set = self.entries().into_iter().zip(defaults).filter(|(entry, default)| entry != default);
        set.map(|(entry, _)| entry).collect()
    }

    /// Sets one setting by its name.
    ///
    /// # Errors
    /// [`SettingError`], which names the setting.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), SettingError> {
        match name {
            INTERPRETERS => self.interpreters = chosen(name, value, Interpreters::ALL)?,
            ANONYMOUS_CODE => self.anonymous_code = chosen(name, value, AnonymousCode::ALL)?,
            RUNNING_PROGRAMS => self.running_programs = chosen(name, value, RunningPrograms::ALL)?,
            CONTAINERS => self.containers = chosen(name, value, Containers::ALL)?,
            DUAL_USE => self.dual_use = chosen(name, value, DualUse::ALL)?,
            ALLOW_UPDATES => self.allow_updates = chosen(name, value, &[false, true])?,
            SURVIVAL_CHECK => self.survival_check = chosen(name, value, SurvivalCheck::ALL)?,
            MANIFEST_KEYS => {
                let keys: Result<Vec<_>, _> = value.split_ascii_whitespace().map(str::parse).collect();
                self.manifest_keys = keys?;
                self.manifest_keys.sort_unstable();
                manifest_keys(&self.manifest_keys)?;
            }
            NOTICE_TEXT => self.notice.text = words(NOTICE_TEXT, value)?,
            NOTICE_CONTACT => self.notice.contact = words(NOTICE_CONTACT, value)?,
            NOTICE_SILENT => self.notice.silent = chosen(name, value, &[false, true])?,
            name => {
                let guard = name.strip_prefix(GUARDS).and_then(Guard::from_name);
                let guard = guard.ok_or_else(|| SettingError::Unknown(shortened(name)))?;
                self.guards.set(guard, chosen(name, value, GuardMode::ALL)?);
            }
        }
        Ok(())
    }

    /// The settings of these entries; the others are at their defaults.
    ///
    /// # Errors
    /// [`SettingError`] of the first entry that is wrong.
    pub fn of_entries<N: AsRef<str>, V: AsRef<str>>(
        entries: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self, SettingError> {
        let mut settings = Self::default();
        for (name, value) in entries {
            settings.set(name.as_ref(), value.as_ref())?;
        }
        Ok(settings)
    }

    /// Checks what types do not: the words for people, the keys, and that something holds what is set.
    ///
    /// # Errors
    /// [`SettingError::Notice`], [`SettingError::ManifestKeys`], [`SettingError::Unheld`].
    pub fn validate(&self) -> Result<(), SettingError> {
        words(NOTICE_TEXT, &self.notice.text)?;
        words(NOTICE_CONTACT, &self.notice.contact)?;
        manifest_keys(&self.manifest_keys)?;
        if self.containers == Containers::Block {
            return Err(SettingError::Unheld(CONTAINERS, Containers::Block.name()));
        }
        if self.allow_updates {
            return Err(SettingError::Unheld(ALLOW_UPDATES, "true"));
        }
        Ok(())
    }
}

fn chosen<T: Copy + fmt::Display>(setting: &str, value: &str, possible: &[T]) -> Result<T, SettingError> {
    possible.iter().copied().find(|choice| choice.to_string() == value).ok_or_else(|| SettingError::Value {
        setting: setting.to_owned(),
        value: shortened(value),
        possible: possible.iter().map(T::to_string).collect::<Vec<_>>().join(", "),
    })
}

/// Sorted, few and none twice: there is one form of each set of keys.
fn manifest_keys(keys: &[ManifestKey]) -> Result<(), SettingError> {
    let is_set = keys.len() <= MANIFEST_KEYS_MAX && keys.is_sorted_by(|a, b| a < b);
    if is_set { Ok(()) } else { Err(SettingError::ManifestKeys) }
}

/// Words that a terminal shows and does not obey.
fn words(setting: &'static str, value: &str) -> Result<String, SettingError> {
    let is_shown = value.len() <= NOTICE_BYTES_MAX && !value.chars().any(char::is_control);
    if is_shown { Ok(value.to_owned()) } else { Err(SettingError::Notice(setting)) }
}

fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &str = "0101010101010101010101010101010101010101010101010101010101010101 \
                        abababababababababababababababababababababababababababababababab";

    #[test]
    fn guards_keep_what_each_is_told() {
        for (index, guard) in Guard::ALL.into_iter().enumerate() {
            assert_eq!((guard as usize, Guard::from_name(guard.name())), (index, Some(guard)));
            let mut guards = Guards::default();
            guards.set(guard, GuardMode::Off);
            let off: Vec<_> =
                Guard::ALL.into_iter().filter(|guard| guards.mode(*guard) == GuardMode::Off).collect();
            assert_eq!(off, [guard]);
        }
    }

    /// What is stored and signed leaves these out: they may never change.
    #[test]
    fn names_and_defaults_are_for_ever() {
        let defaults: Vec<_> = PolicySettings::default().entries();
        let defaults: Vec<_> = defaults.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(
            defaults.join(" "),
            "interpreters=default anonymousCode=audit runningPrograms=report containers=existing dualUse=keep \
             allowUpdates=false survivalCheck=refuse manifestKeys= guards.write_labelled=audit guards.kernel_modules=enforce \
             guards.kexec=enforce guards.ptrace=enforce guards.proc_mem=enforce guards.block_devices=enforce \
             guards.binfmt=enforce guards.bpf=audit guards.own_files=enforce guards.own_processes=enforce \
             guards.own_bpf=enforce notice.text= notice.contact= notice.silent=false"
        );
        assert!(PolicySettings::default().entries_set().is_empty());
    }

    #[test]
    fn every_value_of_every_setting_is_set_by_its_name() {
        let values = |name: &str| match name {
            "interpreters" => vec!["open", "default", "strict"],
            "anonymousCode" => vec!["audit", "deny"],
            "runningPrograms" => vec!["report", "freeze", "kill"],
            "containers" => vec!["existing", "block", "by-digest"],
            "dualUse" => vec!["keep", "remove"],
            "survivalCheck" => vec!["refuse", "force"],
            "allowUpdates" | "notice.silent" => vec!["false", "true"],
            "notice.text" | "notice.contact" => vec!["", "call 4711"],
            "manifestKeys" => vec!["", KEYS],
            _ => vec!["enforce", "audit", "off"],
        };
        let defaults = PolicySettings::default().entries();
        for (name, default) in &defaults {
            for value in values(name) {
                let set = PolicySettings::of_entries([(name, value)]).unwrap();
                let expected: Vec<_> =
                    (value != default).then(|| (name.clone(), value.to_owned())).into_iter().collect();
                assert_eq!(set.entries_set(), expected);
                assert_eq!(PolicySettings::of_entries(set.entries()).unwrap(), set);
            }
        }
    }

    #[test]
    fn what_nothing_would_hold_is_not_valid() {
        for (name, value) in [("containers", "block"), ("allowUpdates", "true")] {
            let settings = PolicySettings::of_entries([(name, value)]).unwrap();
            let fault = settings.validate().unwrap_err().to_string();
            assert_eq!(fault, format!("{name} cannot be {value} yet: nothing on the machine would hold it"));
        }
        let settings = PolicySettings::of_entries([("containers", "by-digest")]).unwrap();
        assert_eq!(settings.validate(), Ok(()));
    }

    #[test]
    fn what_cannot_be_set_is_told_by_name() {
        let fault =
            |name: &str, value: &str| PolicySettings::default().set(name, value).unwrap_err().to_string();
        assert_eq!(fault("interpreter", "open"), "there is no setting \"interpreter\"");
        assert_eq!(fault("guards.", "off"), "there is no setting \"guards.\"");
        assert_eq!(fault("guards.exec", "off"), "there is no setting \"guards.exec\"");
        assert_eq!(fault("guards.ptrace", "on"), "guards.ptrace \"on\" is not one of enforce, audit, off");
        assert_eq!(fault("dualUse", "Keep"), "dualUse \"Keep\" is not one of keep, remove");
        for text in ["a\nb", "\u{1b}[2J", &"x".repeat(257)] {
            assert!(fault("notice.text", text).starts_with("notice.text must be at most 256 bytes"));
        }
        assert!(PolicySettings::default().set("notice.contact", &"x".repeat(256)).is_ok());
        let keys = |keys: &[u8]| {
            keys.iter().map(|key| ManifestKey([*key; 32]).to_string()).collect::<Vec<_>>().join(" ")
        };
        assert!(
            fault("manifestKeys", "abab").starts_with("manifestKeys \"abab\" is not 64 hexadecimal digits")
        );
        for wrong in [&[1, 1][..], &[1, 2, 3, 4, 5, 6, 7, 8, 9]] {
            assert_eq!(
                fault("manifestKeys", &keys(wrong)),
                "manifestKeys must be at most 8, none of them twice"
            );
        }
        let mut settings = PolicySettings::default();
        settings.set("manifestKeys", &keys(&[8, 7, 1])).unwrap();
        assert_eq!(settings.manifest_keys, [1, 7, 8].map(|key| ManifestKey([key; 32])));
        settings.manifest_keys.reverse();
        assert_eq!(settings.validate(), Err(SettingError::ManifestKeys));
    }
}
