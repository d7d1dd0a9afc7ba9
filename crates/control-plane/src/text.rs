//! Texts that people give things: checked alike everywhere.

use crate::{Error, Result};

/// The longest name, in characters.
pub(crate) const NAME_CHARS_MAX: usize = 128;
/// The longest description or comment, in characters.
pub(crate) const DESCRIPTION_CHARS_MAX: usize = 1024;
/// The most user groups of one thing.
const USER_GROUPS_MAX: usize = 1000;

/// A name of `what` without blanks around it.
pub(crate) fn name(what: &str, text: &str) -> Result<String> {
    let trimmed = text.trim();
    if trimmed.is_empty() || text.chars().count() > NAME_CHARS_MAX || text.chars().any(char::is_control) {
        return Err(Error::InvalidInput(format!(
            "the name of {what} has 1 to {NAME_CHARS_MAX} printable characters"
        )));
    }
    Ok(trimmed.to_owned())
}

/// A description of `what` without blanks around it; it may be empty.
pub(crate) fn description(what: &str, text: &str) -> Result<String> {
    if text.chars().count() > DESCRIPTION_CHARS_MAX
        || text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\t'))
    {
        return Err(Error::InvalidInput(format!(
            "the description of {what} has at most {DESCRIPTION_CHARS_MAX} printable characters"
        )));
    }
    Ok(text.trim().to_owned())
}

/// User groups, sorted and each once.
pub(crate) fn user_groups(groups: Vec<String>) -> Result<Vec<String>> {
    if groups.len() > USER_GROUPS_MAX {
        return Err(Error::InvalidInput(format!("at most {USER_GROUPS_MAX} user groups are possible")));
    }
    let named = groups.into_iter().map(|group| name("a user group", &group));
    let mut groups = named.collect::<Result<Vec<_>>>()?;
    groups.sort_unstable();
    groups.dedup();
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_printable_and_short() {
        assert_eq!(name("a role", " Tier 1 ").unwrap(), "Tier 1");
        let long = "x".repeat(NAME_CHARS_MAX + 1);
        for bad in ["", "  ", "a\nb", "a\u{0}", &long] {
            assert!(name("a role", bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn user_groups_are_a_set() {
        let groups = ["b", "a ", "b"].map(str::to_owned).to_vec();
        assert_eq!(user_groups(groups).unwrap(), ["a", "b"]);
        assert!(user_groups(vec![String::new()]).is_err());
        assert!(user_groups(vec!["x".to_owned(); USER_GROUPS_MAX + 1]).is_err());
    }
}
