//! Text to tokens: words, quoted words, braces, comments, environment variables, each with its file and line.

use std::sync::Arc;

use super::Error;

/// Where a token stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's name, as given.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: u32,
}

/// A word of a Corefile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its text, quotes taken off and variables replaced.
    pub text: String,
    /// Where it stands.
    pub place: Place,
    /// It came in quotes, so that a brace in it is only a character.
    pub quoted: bool,
}

impl Token {
    /// Whether this is the structural brace `text`.
    #[must_use]
    pub fn is(&self, text: &str) -> bool {
        !self.quoted && self.text == text
    }

    /// Whether `other` stands on the same line of the same file.
    #[must_use]
    pub fn shares_line_with(&self, other: &Self) -> bool {
        self.place == other.place
    }

    /// An error at this token.
    pub(crate) fn error(&self, message: impl Into<String>) -> Error {
        self.place.error(message)
    }
}

impl Place {
    /// An error at this place.
    pub(crate) fn error(&self, message: impl Into<String>) -> Error {
        Error {
            file: self.file.to_string(),
            line: self.line,
            message: message.into(),
        }
    }
}

/// Splits a file into tokens. `environment` gives the value of a variable.
///
/// # Errors
/// When a quote is not closed.
pub fn tokens(
    file: &str,
    text: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<Token>, Error> {
    let file: Arc<str> = file.into();
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut characters = text.chars().peekable();
    while let Some(&character) = characters.peek() {
        match character {
            '\n' => {
                line += 1;
                characters.next();
            }
            character if character.is_whitespace() || character == '\u{feff}' => {
                characters.next();
            }
            '#' => while characters.next_if(|c| *c != '\n').is_some() {},
            '"' => {
                characters.next();
                let place = Place {
                    file: Arc::clone(&file),
                    line,
                };
                let text = quoted(&mut characters, &mut line)
                    .ok_or_else(|| place.error("a quote is opened here and never closed"))?;
                tokens.push(Token {
                    text: with_variables(&text, environment),
                    place,
                    quoted: true,
                });
            }
            _ => {
                let mut text = String::new();
                while let Some(c) = characters.next_if(|c| !c.is_whitespace()) {
                    text.push(c);
                }
                let place = Place {
                    file: Arc::clone(&file),
                    line,
                };
                tokens.push(Token {
                    text: with_variables(&text, environment),
                    place,
                    quoted: false,
                });
            }
        }
    }
    Ok(tokens)
}

/// The rest of a quoted word; `\"` is a quote in it. `None` when the text ends first.
fn quoted(characters: &mut std::iter::Peekable<std::str::Chars<'_>>, line: &mut u32) -> Option<String> {
    let mut text = String::new();
    loop {
        match characters.next()? {
            '"' => return Some(text),
            '\\' if characters.peek() == Some(&'"') => text.extend(characters.next()),
            character => {
                *line += u32::from(character == '\n');
                text.push(character);
            }
        }
    }
}

/// Replaces `{$NAME}`, `{%NAME%}` and `{$NAME:default}`. An unset variable without a default is empty.
fn with_variables(text: &str, environment: &dyn Fn(&str) -> Option<String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("{$").into_iter().chain(rest.find("{%")).min() {
        let closing = if rest[start..].starts_with("{$") {
            "}"
        } else {
            "%}"
        };
        let Some(length) = rest[start + 2..].find(closing) else {
            break;
        };
        let inner = &rest[start + 2..start + 2 + length];
        let (name, default) = inner.split_once(':').unwrap_or((inner, ""));
        out.push_str(&rest[..start]);
        out.push_str(&environment(name).unwrap_or_else(|| default.to_owned()));
        rest = &rest[start + 2 + length + closing.len()..];
    }
    out + rest
}
