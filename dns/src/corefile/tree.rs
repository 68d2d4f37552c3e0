//! Tokens to server blocks and directives, with imports and snippets put in their places.

use std::collections::{HashMap, VecDeque};
use std::path::Path;

use super::Error;
use super::lexer::{Token, tokens};

/// Imports within imports go no deeper than this; deeper means that a file imports itself.
const MAX_DEPTH: usize = 100;
/// All imports together bring in no more words than this: what imports twice what imports twice grows without bounds.
const MAX_IMPORTED: usize = 1_000_000;

/// `keys { directives }`.
#[derive(Clone, Debug)]
pub struct Block {
    /// The zones, with the commas between them taken off.
    pub keys: Vec<Token>,
    /// What stands in the braces.
    pub directives: Vec<Directive>,
}

/// `name args { options }`.
#[derive(Clone, Debug)]
pub struct Directive {
    /// The first word.
    pub name: Token,
    /// The other words of the line.
    pub args: Vec<Token>,
    /// What stands in braces behind it.
    pub options: Vec<Directive>,
}

/// Reads the blocks of a file. `environment` gives the value of a variable.
///
/// # Errors
/// At the first token that stands where it cannot.
pub fn blocks(
    file: &str,
    text: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<Block>, Error> {
    let mut reader = Reader {
        tokens: tokens(file, text, environment)?.into(),
        snippets: HashMap::new(),
        environment,
        open_imports: Vec::new(),
        imported: 0,
    };
    let mut blocks = Vec::new();
    while !reader.tokens.is_empty() {
        if let Some(block) = reader.block()? {
            blocks.push(block);
        }
    }
    Ok(blocks)
}

struct Reader<'e> {
    tokens: VecDeque<Token>,
    snippets: HashMap<String, Vec<Token>>,
    environment: &'e dyn Fn(&str) -> Option<String>,
    /// For each import that is not read to its end: how many tokens are left behind it.
    open_imports: Vec<usize>,
    /// Tokens that imports brought in.
    imported: usize,
}

impl Reader<'_> {
    /// One server block, or `None` when it was a snippet's definition or an import.
    fn block(&mut self) -> Result<Option<Block>, Error> {
        let Some(first) = self.tokens.front().cloned() else {
            return Ok(None);
        };
        if first.is("import") {
            self.tokens.pop_front();
            let args = self.rest_of_line(&first);
            self.import(&first, &args)?;
            return Ok(None);
        }
        let mut keys = Vec::new();
        let opened = loop {
            let Some(token) = self.tokens.front() else {
                break false;
            };
            // Keys go on over a line's end only behind a comma.
            let goes_on = keys.last().is_none_or(|last: &Token| {
                last.shares_line_with(token) || last.text.ends_with(',') || token.is("{")
            });
            if token.is("}") {
                return Err(token.error("unexpected '}'"));
            }
            if !goes_on {
                break false;
            }
            let Some(token) = self.tokens.pop_front() else {
                break false;
            };
            if token.is("{") {
                break true;
            }
            keys.push(token);
        };
        if keys.is_empty() {
            return Err(first.error("a server block needs a zone in front of '{'"));
        }
        if let [key] = keys.as_slice()
            && let Some(name) = key.text.strip_prefix('(').and_then(|name| name.strip_suffix(')'))
        {
            let name = name.to_owned();
            self.define_snippet(&first, name, opened)?;
            return Ok(None);
        }
        let keys = without_commas(keys);
        let directives = self.directives(opened.then_some(&first))?;
        Ok(Some(Block { keys, directives }))
    }

    fn define_snippet(&mut self, first: &Token, name: String, opened: bool) -> Result<(), Error> {
        if !opened {
            return Err(first.error(format!("the snippet ({name}) needs a block")));
        }
        let mut body = Vec::new();
        let mut depth = 0usize;
        loop {
            let token = self.tokens.pop_front().ok_or_else(|| never_closed(first))?;
            if token.is("}") {
                if depth == 0 {
                    break;
                }
                depth -= 1;
            }
            depth += usize::from(token.is("{"));
            body.push(token);
        }
        if self.snippets.insert(name.clone(), body).is_some() {
            return Err(first.error(format!("the snippet ({name}) is defined twice")));
        }
        Ok(())
    }

    /// Directives up to the brace that closes `opener`, or to the end of the file for a block without braces.
    fn directives(&mut self, opener: Option<&Token>) -> Result<Vec<Directive>, Error> {
        let mut directives = Vec::new();
        loop {
            let Some(name) = self.tokens.pop_front() else {
                return match opener {
                    Some(opener) => Err(never_closed(opener)),
                    None => Ok(directives),
                };
            };
            if name.is("}") {
                if opener.is_some() {
                    return Ok(directives);
                }
                return Err(name.error("unexpected '}'"));
            }
            if name.is("{") {
                return Err(name.error("unexpected '{'"));
            }
            let args = self.rest_of_line(&name);
            if name.is("import") {
                self.import(&name, &args)?;
                continue;
            }
            let opens = self
                .tokens
                .front()
                .is_some_and(|token| token.is("{") && token.shares_line_with(&name));
            let options = if opens {
                self.tokens.pop_front();
                self.directives(Some(&name))?
            } else {
                Vec::new()
            };
            directives.push(Directive { name, args, options });
        }
    }

    /// Takes the words up to the end of the line or a brace.
    fn rest_of_line(&mut self, first: &Token) -> Vec<Token> {
        let mut words = Vec::new();
        while let Some(token) = self.tokens.front() {
            if !token.shares_line_with(first) || token.is("{") || token.is("}") {
                break;
            }
            words.extend(self.tokens.pop_front());
        }
        words
    }

    /// Puts a snippet, a file, or the files that a pattern with `*` in its last part matches in front of what follows.
    fn import(&mut self, directive: &Token, args: &[Token]) -> Result<(), Error> {
        let [what] = args else {
            return Err(directive.error("import takes one file, pattern or snippet"));
        };
        // An import is open while the directive itself came from it.
        let left = self.tokens.len();
        let left_before = left + 1 + args.len();
        self.open_imports.retain(|behind| left_before > *behind);
        if self.open_imports.len() == MAX_DEPTH {
            return Err(directive.error("too many imports within each other: a file imports itself"));
        }
        self.open_imports.push(left);
        let imported = match self.snippets.get(&what.text) {
            Some(snippet) => snippet.clone(),
            None => self.imported_files(what)?,
        };
        self.imported += imported.len();
        if self.imported > MAX_IMPORTED {
            return Err(directive.error("the imports are too long together"));
        }
        for token in imported.into_iter().rev() {
            self.tokens.push_front(token);
        }
        Ok(())
    }

    fn imported_files(&self, what: &Token) -> Result<Vec<Token>, Error> {
        let beside = Path::new(&*what.place.file).parent().unwrap_or(Path::new("."));
        let path = beside.join(&what.text);
        let paths = match path.file_name().map(|name| name.to_string_lossy().into_owned()) {
            Some(pattern) if pattern.contains('*') => matching_files(&path, &pattern),
            _ => vec![path],
        };
        let mut imported = Vec::new();
        for path in paths {
            let text = std::fs::read_to_string(&path)
                .map_err(|error| what.error(format!("cannot import {}: {error}", path.display())))?;
            imported.extend(tokens(&path.to_string_lossy(), &text, self.environment)?);
        }
        Ok(imported)
    }
}

/// Files beside `path` whose names match the pattern, sorted. No match is no error, as in CoreDNS.
fn matching_files(path: &Path, pattern: &str) -> Vec<std::path::PathBuf> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries
        .filter(|entry| matches_pattern(&entry.file_name().to_string_lossy(), pattern))
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    paths.sort();
    paths
}

/// Whether a name matches a pattern in which `*` stands for any characters.
fn matches_pattern(name: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => name == pattern,
        Some((front, rest)) => match name.strip_prefix(front) {
            // A leading dot is matched by a dot alone, as in every shell.
            Some(_) if front.is_empty() && name.starts_with('.') => false,
            Some(tail) => (0..=tail.len())
                .filter_map(|at| tail.get(at..))
                .any(|tail| matches_pattern(tail, rest)),
            None => false,
        },
    }
}

fn without_commas(keys: Vec<Token>) -> Vec<Token> {
    let mut zones = Vec::new();
    for key in keys {
        let parts = key.text.split(',').filter(|part| !part.is_empty());
        zones.extend(parts.map(|part| Token {
            text: part.to_owned(),
            ..key.clone()
        }));
    }
    zones
}

fn never_closed(opener: &Token) -> Error {
    opener.error(format!("the block of {:?} is never closed", opener.text))
}
