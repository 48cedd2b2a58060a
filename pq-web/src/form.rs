//! Parts of forms.

use maud::{Markup, html};
use sha2::{Digest, Sha256};

use crate::html::{text, visible};
use crate::page::{Page, Section, Visit};

/// Draws a form that consists of a button.
pub(crate) fn button(visit: &Visit, path: &str, fields: &[(&str, &str)], words: &str, class: &str) -> Markup {
    button_on(visit, path, fields, words, class, "")
}

/// Draws a form that consists of a button, of several with the same words. Its label for screen readers says `what`
/// it is on.
pub(crate) fn button_on(
    visit: &Visit,
    path: &str,
    fields: &[(&str, &str)],
    words: &str,
    class: &str,
    what: &str,
) -> Markup {
    let label = (!what.is_empty()).then(|| format!("{words} {}", visible(what)));
    html! {
        form method="post" action=(visit.url(path)) class="inline" {
            (visit.token_field())
            @for (name, value) in fields { input type="hidden" name=(name) value=(value); }
            button class=[(!class.is_empty()).then_some(class)] aria-label=[label] { (words) }
        }
    }
}

/// Returns a text that differs for texts that differ, to find out whether what a form showed has changed since. A
/// browser does not send a text back byte for byte.
pub(crate) fn fingerprint(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Draws an input with its label.
pub(crate) fn field(name: &str, label: &str, kind: &str, value: &str) -> Markup {
    html! {
        label { (label) input name=(name) type=(kind) value=(value); }
    }
}

/// Draws the question whether to do what cannot be undone.
pub(crate) fn confirmation(
    visit: &Visit,
    question: &str,
    details: &str,
    path: &str,
    fields: &[(&str, &str)],
    back: &str,
) -> Page {
    let fields: Vec<(&str, &str)> = fields.iter().copied().chain([("confirmed", "yes")]).collect();
    let content = html! {
        p { (text(details)) }
        div class="buttons" {
            (button(visit, path, &fields, "Yes, do it", "danger"))
            a class="button" href=(visit.url(back)) { "No, go back" }
        }
    };
    Page::new(Section::None, question, content)
}
