//! Files into documents: what each line of JSON is, and what is wrong with it.
//!
//! The types here are not those that the engine writes. A page is made of files from other versions too: fields that are
//! not known are passed over, names of encodings, kinds and outcomes are open, and what an older version did not write
//! may be missing. What is drawn must be there, and be a figure that can be drawn ([`Figure`]).

mod bench;
mod figure;
mod migration;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::stats::BATCH_KIND;

pub(super) use bench::{Bench, Engine, Figures, Run, Scenario};
pub(super) use figure::{Figure, Parts};
pub(super) use migration::{FaultTimes, Migration, PostCopy, Round};

/// One object of a file.
#[derive(Clone, Debug)]
pub struct Document {
    /// The file's name, with the line when it is not the first.
    pub(super) origin: String,
    pub(super) content: Content,
}

/// What an object describes.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// One end of a migration.
    Migration(Box<Migration>),
    /// A run of the bench.
    Bench(Bench),
}

/// Why a file is no report. Lines and columns count from 1.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// There is no object in it.
    #[error("{file}: is empty; expected the JSON of a migration or a bench")]
    Empty {
        /// The file's name.
        file: String,
    },
    /// It is not text.
    #[error("{file}, line {line}: is not UTF-8 text")]
    NotText {
        /// The file's name.
        file: String,
        /// The line of the first byte that is none.
        line: usize,
    },
    /// It is not JSON, or not of the expected form.
    #[error("{file}, line {line}, column {column}: {problem}")]
    Malformed {
        /// The file's name.
        file: String,
        /// Where.
        line: usize,
        /// Where on the line.
        column: usize,
        /// What is wrong.
        problem: String,
    },
    /// It is the JSON of something else.
    #[error("{file}, line {line}: {what} {value} is not known; expected {accepted}")]
    Unknown {
        /// The file's name.
        file: String,
        /// Where the object begins.
        line: usize,
        /// `kind` or `schema`.
        what: &'static str,
        /// What it says.
        value: String,
        /// What it could say.
        accepted: String,
    },
}

/// Reads the objects of a file, one after another.
///
/// # Errors
/// When there is none, or one of them cannot be used; no part of such a file is.
pub fn read(file: &str, bytes: &[u8]) -> Result<Vec<Document>, ReadError> {
    let text = str::from_utf8(bytes).map_err(|error| {
        let valid = &bytes[..error.valid_up_to()];
        ReadError::NotText { file: file.to_owned(), line: 1 + valid.iter().filter(|byte| **byte == b'\n').count() }
    })?;
    let mut documents = Vec::new();
    let mut objects = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
    loop {
        let rest = &text[objects.byte_offset()..];
        let start = text.len() - rest.trim_start().len();
        match objects.next() {
            None => break,
            Some(Ok(_)) => documents.extend(Object { file, text, start, end: objects.byte_offset() }.document()?),
            Some(Err(error)) => return Err(malformed(file, 1, &error)),
        }
    }
    if documents.is_empty() { Err(ReadError::Empty { file: file.to_owned() }) } else { Ok(documents) }
}

/// An object in its file.
struct Object<'a> {
    file: &'a str,
    text: &'a str,
    start: usize,
    end: usize,
}

/// What tells documents apart.
#[derive(Deserialize)]
#[serde(expecting = "an object")]
struct Header {
    #[serde(default)]
    schema: serde_json::Value,
    #[serde(default)]
    kind: serde_json::Value,
}

impl Object<'_> {
    /// None for the sum of a batch, which says nothing that its migrations do not.
    fn document(&self) -> Result<Option<Document>, ReadError> {
        let Header { schema, kind } = self.parse()?;
        let content = match &kind {
            serde_json::Value::Null => {
                self.check(&schema, crate::stats::SCHEMA)?;
                Content::Migration(Box::new(self.parse()?))
            }
            serde_json::Value::String(kind) if kind == bench::KIND => {
                self.check(&schema, bench::SCHEMA)?;
                Content::Bench(self.parse()?)
            }
            serde_json::Value::String(kind) if kind == BATCH_KIND => return Ok(None),
            other => return Err(self.unknown("kind", other, format!("{:?}, or none for a migration", bench::KIND))),
        };
        let line = self.line();
        let origin = if line == 1 { self.file.to_owned() } else { format!("{}, line {line}", self.file) };
        Ok(Some(Document { origin, content }))
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<T, ReadError> {
        let text = &self.text[self.start..self.end];
        // Sequences would do for a struct, too.
        if !text.starts_with('{') {
            let (line, column) = (self.line(), self.start - self.text[..self.start].rfind('\n').map_or(0, |at| at + 1) + 1);
            return Err(ReadError::Malformed { file: self.file.to_owned(), line, column, problem: "expected an object".to_owned() });
        }
        serde_json::from_str(text).map_err(|error| malformed(self.file, self.line(), &error))
    }

    fn check(&self, schema: &serde_json::Value, newest: u32) -> Result<(), ReadError> {
        match schema.as_u64() {
            Some(version) if (1..=u64::from(newest)).contains(&version) => Ok(()),
            _ if newest == 1 => Err(self.unknown("schema", schema, "1".to_owned())),
            _ => Err(self.unknown("schema", schema, format!("1 to {newest}"))),
        }
    }

    fn unknown(&self, what: &'static str, value: &serde_json::Value, accepted: String) -> ReadError {
        let mut value = value.to_string();
        if value.chars().count() > LONGEST_QUOTE {
            value = value.chars().take(LONGEST_QUOTE).chain(['…']).collect();
        }
        ReadError::Unknown { file: self.file.to_owned(), line: self.line(), what, value, accepted }
    }

    fn line(&self) -> usize {
        1 + self.text[..self.start].matches('\n').count()
    }
}

/// An error of serde's in an object that begins on line `first` of the file.
fn malformed(file: &str, first: usize, error: &serde_json::Error) -> ReadError {
    let text = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    let problem = text.strip_suffix(&position).unwrap_or(&text).to_owned();
    ReadError::Malformed { file: file.to_owned(), line: first + error.line().max(1) - 1, column: error.column().max(1), problem }
}

/// Characters of a wrong value that an error repeats.
const LONGEST_QUOTE: usize = 40;

#[cfg(test)]
mod tests;
