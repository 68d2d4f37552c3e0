//! `causeway dns check`: what is wrong with a Corefile.

use std::fs::File;
use std::path::Path;

use dns::corefile::{Corefile, Error, Key};
use serde_json::json;

use crate::cli::Output;

/// What a look at a Corefile came to.
#[derive(Debug)]
pub struct Checked {
    file: String,
    corefile: Corefile,
    errors: Vec<Error>,
}

/// Reads the file as the server would; `is_lenient` warns in the log of plugins that are not known.
///
/// # Errors
/// When the file cannot be read, which says nothing of it.
pub fn check(path: &Path, is_lenient: bool) -> std::io::Result<Checked> {
    File::open(path)?;
    let (corefile, errors) = Corefile::look_over(path, is_lenient);
    Ok(Checked {
        file: path.display().to_string(),
        corefile,
        errors,
    })
}

impl Checked {
    /// Whether the server would not start with it.
    pub fn is_wrong(&self) -> bool {
        !self.errors.is_empty()
    }

    /// What there is to say, in the form that was asked for.
    pub fn render(&self, output: Output) -> String {
        match output {
            Output::Text => self.text(),
            Output::Json => format!("{:#}\n", self.json()),
        }
    }

    fn text(&self) -> String {
        if self.is_wrong() {
            return self.errors.iter().map(|error| format!("{error}\n")).collect();
        }
        let blocks = self.corefile.blocks.iter().map(|block| {
            let zones = block.keys.iter().map(Key::to_string);
            zones.collect::<Vec<_>>().join(" ")
        });
        let blocks: Vec<String> = blocks.collect();
        format!("{}: good, serves {}\n", self.file, blocks.join("; "))
    }

    fn json(&self) -> serde_json::Value {
        let errors: Vec<_> = self
            .errors
            .iter()
            .map(|Error { file, line, message }| json!({"file": file, "line": line, "message": message}))
            .collect();
        json!({"file": self.file, "errors": errors})
    }
}
