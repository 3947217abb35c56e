//! The steps of an explanation, and what they come to.

use crate::protocol::Step;

/// The steps so far, and the first answer that refuses.
#[derive(Default)]
pub(in crate::protocols) struct Findings {
    steps: Vec<Step>,
    refused: Option<String>,
    failed: bool,
    open: Vec<&'static str>,
}

impl Findings {
    fn push(&mut self, name: &str, ok: Option<bool>, detail: impl Into<String>) {
        self.failed |= ok == Some(false);
        self.steps.push(Step {
            name: name.to_owned(),
            ok,
            detail: detail.into(),
        });
    }

    /// For information.
    pub fn info(&mut self, name: &str, detail: impl Into<String>) {
        self.push(name, None, detail);
    }

    /// It holds.
    pub fn pass(&mut self, name: &str, detail: impl Into<String>) {
        self.push(name, Some(true), detail);
    }

    /// It does not, and no answer of its own says so.
    pub fn fail(&mut self, name: &str, detail: impl Into<String>) {
        self.push(name, Some(false), detail);
    }

    /// What could not be checked for want of something.
    pub fn unknown(&mut self, name: &str, what: &'static str, detail: impl Into<String>) {
        self.open.push(what);
        self.info(name, detail);
    }

    /// A failed check with the answer it gives; the first of these is the request's.
    pub fn refused(&mut self, name: &str, detail: impl Into<String>, answer: String) {
        self.fail(name, detail);
        self.refused.get_or_insert(answer);
    }

    /// The steps with the verdict; `held`: the sentence when nothing was found.
    pub fn end(mut self, held: &str) -> Vec<Step> {
        let (ok, text) = match (self.refused.take(), self.failed, self.open.is_empty()) {
            (Some(answer), _, _) => (Some(false), format!("the bridge answers {answer}")),
            (None, true, _) => (Some(false), "it cannot be read as a request".to_owned()),
            (None, false, true) => (Some(true), held.to_owned()),
            (None, false, false) => (
                None,
                format!(
                    "nothing is wrong so far; not checked: {}",
                    self.open.join(", ")
                ),
            ),
        };
        self.push("verdict", ok, text);
        self.steps
    }
}
