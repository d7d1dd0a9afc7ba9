//! What signed manifests list, in the form that answers quickly. Who signed them was verified before.

use domain::digest::Sha256Digest;

/// Contents by digest, with the name of a manifest that lists each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifests {
    names: Vec<Box<str>>,
    /// Sorted, no digest twice: the first manifest that lists one answers for it.
    listed: Vec<(Sha256Digest, u16)>,
}

impl Manifests {
    /// Puts manifests together: the name and the contents of each. Those beyond the first 65,536 are left out.
    pub fn new<'a>(manifests: impl IntoIterator<Item = (&'a str, &'a [Sha256Digest])>) -> Self {
        let mut all = Self::default();
        for (index, (name, digests)) in (0..=u16::MAX).zip(manifests) {
            all.names.push(name.into());
            all.listed.extend(digests.iter().map(|digest| (*digest, index)));
        }
        all.listed.sort_unstable();
        all.listed.dedup_by_key(|(digest, _)| *digest);
        all.listed.shrink_to_fit();
        all
    }

    /// How many contents they list.
    pub fn contents(&self) -> usize {
        self.listed.len()
    }

    /// The name of the manifest that lists this content.
    pub fn find(&self, digest: &Sha256Digest) -> Option<&str> {
        let at = self.listed.binary_search_by_key(digest, |(listed, _)| *listed).ok()?;
        let (_, index) = self.listed.get(at)?;
        self.names.get(usize::from(*index)).map(Box::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_first_that_lists_a_content_answers(lists in prop::collection::vec(prop::collection::vec(0..9_u8, 0..6), 0..5)) {
            let digest = |content: u8| Sha256Digest([content; 32]);
            let lists: Vec<(String, Vec<_>)> = lists
                .iter()
                .enumerate()
                .map(|(i, list)| (i.to_string(), list.iter().map(|content| digest(*content)).collect()))
                .collect();
            let manifests = Manifests::new(lists.iter().map(|(name, list)| (name.as_str(), list.as_slice())));
            for content in 0..9 {
                let expected = lists.iter().find(|(_, list)| list.contains(&digest(content)));
                prop_assert_eq!(manifests.find(&digest(content)), expected.map(|(name, _)| name.as_str()));
            }
        }
    }
}
