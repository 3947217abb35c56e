//! What examinations of remote servers, and of what they sent, have in common, whatever the protocol.
//!
//! Each step is told as it is done. A fault does not end an examination as long as a later step can be
//! looked at: who mends one wants to know of the next. What is reported as *the* fault is the first
//! that keeps messages from passing, else the first that makes them slow or uncertain.
//!
//! | file | steps |
//! | --- | --- |
//! | `reach` | `address`, `tls` |
//! | `clock` | `clock`: how far two clocks are apart |
//! | `saved`, `findings` | none: reads a saved request, and writes down what it comes to |

mod clock;
mod findings;
mod reach;
pub(in crate::protocols) mod saved;

use ::http::Uri;

pub(in crate::protocols) use clock::{clocks, skew};
pub(in crate::protocols) use findings::Findings;
pub(in crate::protocols) use reach::Reach;

use crate::protocol::{Refusal, Step, Tell};

/// How bad a fault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::protocols) enum Weight {
    /// Messages do not pass.
    Blocks,
    /// They pass late, or some do not.
    Hurts,
}

/// A fault found in a step: its weight, a code for machines, the sentence.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::protocols) struct Found {
    pub weight: Weight,
    pub refusal: Refusal,
}

impl Found {
    pub fn blocks(code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            weight: Weight::Blocks,
            refusal: Refusal::new(code, detail),
        }
    }

    pub fn hurts(code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            weight: Weight::Hurts,
            refusal: Refusal::new(code, detail),
        }
    }
}

/// What was told so far.
pub(in crate::protocols) struct Report<'a> {
    tell: Tell<'a>,
    worst: Option<Found>,
}

impl<'a> Report<'a> {
    pub fn new(tell: Tell<'a>) -> Self {
        Self { tell, worst: None }
    }

    /// The fault: the first that keeps messages from passing, else the first that hurts.
    pub fn end(self) -> Result<(), Refusal> {
        match self.worst {
            None => Ok(()),
            Some(found) => Err(found.refusal),
        }
    }

    fn step(&mut self, name: &str, ok: Option<bool>, detail: impl Into<String>) {
        (self.tell)(Step {
            name: name.to_owned(),
            ok,
            detail: detail.into(),
        });
    }

    pub fn pass(&mut self, name: &str, detail: impl Into<String>) {
        self.step(name, Some(true), detail);
    }

    pub fn info(&mut self, name: &str, detail: impl Into<String>) {
        self.step(name, None, detail);
    }

    pub fn fault(&mut self, name: &str, found: Found) {
        self.step(name, Some(false), found.refusal.detail.clone());
        if self
            .worst
            .as_ref()
            .is_none_or(|worst| found.weight < worst.weight)
        {
            self.worst = Some(found);
        }
    }
}

/// Where a URL leads.
pub(in crate::protocols) struct Place {
    pub host: String,
    pub port: u16,
    pub tls: bool,
}

impl Place {
    pub fn of(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let tls = uri.scheme_str()? == "https";
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Some(Self {
            host: uri.host()?.to_owned(),
            port,
            tls,
        })
    }
}
