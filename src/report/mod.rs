//! JSON of migrations and benches as one HTML page with pictures.
//!
//! The page has to be readable anywhere and for ever: everything is inside it (style, pictures), it needs no script and
//! no network, follows the reader's choice of light or dark, and each picture has its figures beside it as text.
//! It is built as a tree of elements (`markup`) whose text and attributes are escaped when they are printed, so nothing
//! that comes from a file can become markup.
//!
//! Pictures are fluid: positions along the width are percentages, heights and letters are pixels, so that a picture is as
//! legible on a telephone as on a desk. Lengths of bars always start at zero on a linear axis; only ratios and rates that
//! span decades, which are drawn as points and lines, get a logarithmic one, and say so.
#![forbid(unsafe_code)]

mod axis;
mod bars;
mod bench;
mod markup;
mod migration;
mod page;
mod pairing;
mod plot;
mod post_copy;
mod quantity;
mod ratios;
mod read;
mod stack;
mod table;
mod timeline;

pub use page::page;
pub use read::{Document, ReadError, read};
