//! Huge pages for tests that need some, reserved where this process may and given back.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};

/// A reserve that lasts until it is dropped.
pub(crate) struct HugePages(());

impl HugePages {
    /// Makes sure of `pages` free huge pages of 2 MiB.
    ///
    /// # Errors
    /// When there are not that many and the host does not give them.
    pub(crate) fn reserve(pages: u64) -> Result<Self> {
        // Whatever was added until there is an error is given back by this.
        let reserve = Self(());
        let lacking = pages.saturating_sub(read("free_hugepages")?.saturating_sub(read("resv_hugepages")?));
        let all = read("nr_hugepages")?;
        if lacking > 0 {
            write(all + lacking).with_context(|| format!("{lacking} huge pages are lacking: echo {} > {DIRECTORY}/nr_hugepages", all + lacking))?;
            ADDED.fetch_add(read("nr_hugepages")?.saturating_sub(all), Ordering::SeqCst);
            let free = read("free_hugepages")?;
            ensure!(free >= pages, "the host has memory for {free} of {pages} huge pages");
        }
        Ok(reserve)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        give_back();
    }
}

/// Gives back what this process has added, for when it is interrupted.
pub(crate) fn give_back() {
    let added = ADDED.swap(0, Ordering::SeqCst);
    if added > 0
        && let Err(error) = read("nr_hugepages").and_then(|all| write(all.saturating_sub(added)))
    {
        eprintln!("{added} huge pages are left reserved: {error:#}");
    }
}

/// Huge pages that are free and promised to nobody; `None` where the host makes more when they are asked for.
///
/// # Errors
/// When there is no pool.
pub(crate) fn left() -> Result<Option<u64>> {
    let left = read("free_hugepages")?.saturating_sub(read("resv_hugepages")?);
    Ok((read("nr_overcommit_hugepages")? == 0).then_some(left))
}

fn read(name: &str) -> Result<u64> {
    let path = format!("{DIRECTORY}/{name}");
    let number = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    number.trim().parse().with_context(|| path)
}

fn write(pages: u64) -> Result<()> {
    std::fs::write(format!("{DIRECTORY}/nr_hugepages"), pages.to_string()).context("nr_hugepages")
}

/// By this process, beyond what there was.
static ADDED: AtomicU64 = AtomicU64::new(0);
const DIRECTORY: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";
