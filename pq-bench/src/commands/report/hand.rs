//! What people wrote into the page, which outlives each report.

use anyhow::{Context, Result};

const BEGIN: &str = "<!-- by hand";
const END: &str = "<!-- end -->";

/// The parts that were written by hand, by the name of their place.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Hand(Vec<(String, String)>);

impl Hand {
    /// Reads them from a page.
    pub(super) fn of(page: &str) -> Result<Self> {
        let mut parts = Vec::new();
        let mut rest = page;
        while let Some(at) = rest.find(BEGIN) {
            let begun = &rest[at + BEGIN.len()..];
            let (name, text) = begun.split_once("-->").context("a `<!-- by hand` is not closed by `-->`")?;
            let name = name.trim().trim_start_matches(':').trim();
            let (text, after) =
                text.split_once(END).with_context(|| format!("no `{END}` follows `{BEGIN}: {name} -->`"))?;
            anyhow::ensure!(!text.contains(BEGIN), "no `{END}` follows `{BEGIN}: {name} -->`");
            parts.push((name.to_owned(), text.trim().to_owned()));
            rest = after;
        }
        Ok(Self(parts))
    }

    /// The place of this name, with what stood there.
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

    /// The names of places that hold something and were not taken.
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
    fn what_is_written_is_kept_and_what_is_unclear_is_refused() {
        let page = "a\n<!-- by hand: put -->\nfsync limits it.\n\nTwice.\n<!-- end -->\nb<!-- by hand -->x<!-- end -->";
        let mut hand = Hand::of(page).expect("it is clear");
        assert_eq!(hand.take("put"), "<!-- by hand: put -->\nfsync limits it.\n\nTwice.\n<!-- end -->\n");
        assert_eq!(hand.take("get"), "<!-- by hand: get -->\n<!-- end -->\n");
        assert_eq!(hand.left(), [""]);
        for unclear in
            ["<!-- by hand: put", "<!-- by hand: put --> a", "<!-- by hand --><!-- by hand --><!-- end -->"]
        {
            assert!(Hand::of(unclear).is_err(), "{unclear}");
        }
    }
}
