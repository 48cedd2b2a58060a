//! Manual sections: text in a page that each report keeps.

use anyhow::{Context, Result};

const BEGIN: &str = "<!-- manual";
const END: &str = "<!-- end -->";

/// The manual sections of a page, by name.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ManualSections(Vec<(String, String)>);

impl ManualSections {
    /// Reads the manual sections of a page.
    pub(super) fn of(page: &str) -> Result<Self> {
        let mut parts = Vec::new();
        let mut rest = page;
        while let Some(at) = rest.find(BEGIN) {
            let begun = &rest[at + BEGIN.len()..];
            let (name, text) = begun.split_once("-->").context("`<!-- manual` must be closed by `-->`")?;
            let name = name.trim().trim_start_matches(':').trim();
            let (text, after) =
                text.split_once(END).with_context(|| format!("no `{END}` follows `{BEGIN}: {name} -->`"))?;
            anyhow::ensure!(!text.contains(BEGIN), "no `{END}` follows `{BEGIN}: {name} -->`");
            parts.push((name.to_owned(), text.trim().to_owned()));
            rest = after;
        }
        Ok(Self(parts))
    }

    /// Removes the section of this name, and returns it with its markers.
    pub(super) fn take(&mut self, name: &str) -> String {
        let (here, others) = std::mem::take(&mut self.0).into_iter().partition(|(known, _)| known == name);
        self.0 = others;
        let here: Vec<(String, String)> = here;
        let text: Vec<String> =
            here.into_iter().map(|(_, text)| text).filter(|text| !text.is_empty()).collect();
        match text.is_empty() {
            true => format!("{BEGIN}: {name} -->\n{END}\n"),
            false => format!("{BEGIN}: {name} -->\n{}\n{END}\n", text.join("\n\n")),
        }
    }

    /// Returns the names of the sections that have text and were not taken.
    pub(super) fn left(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for (name, text) in &self.0 {
            if !text.is_empty() && !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_kept_and_malformed_ones_are_rejected() {
        let page = "a\n<!-- manual: put -->\nfsync limits it.\n\nTwice.\n<!-- end -->\nb<!-- manual -->x<!-- end -->";
        let mut manual = ManualSections::of(page).expect("valid sections");
        assert_eq!(manual.take("put"), "<!-- manual: put -->\nfsync limits it.\n\nTwice.\n<!-- end -->\n");
        assert_eq!(manual.take("get"), "<!-- manual: get -->\n<!-- end -->\n");
        assert_eq!(manual.left(), [""]);
        for unclear in
            ["<!-- manual: put", "<!-- manual: put --> a", "<!-- manual --><!-- manual --><!-- end -->"]
        {
            assert!(ManualSections::of(unclear).is_err(), "{unclear}");
        }
    }
}
