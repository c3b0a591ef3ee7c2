//! `pageferry report`: files in, a page out, and what is said about files that are none.

use std::fs;

use anyhow::{Result, ensure};
use tempfile::TempDir;

use crate::processes::{MOMENT, PAGEFERRY, run};
use crate::{GUEST, receiver};

#[test]
fn both_ends_of_a_real_migration_become_one_page() -> Result<()> {
    let directory = TempDir::new()?;
    let [sent, received, page] = ["sent.json", "received.json", "page.html"].map(|name| directory.path().join(name));
    let receiver = receiver("--max-sessions 1")?;
    fs::write(&sent, receiver.send(GUEST, "")?.wait(MOMENT)?.expect(0)?.stdout)?;
    fs::write(&received, receiver.process.wait(MOMENT)?.expect(0)?.stdout)?;
    let files = format!("report {} {}", sent.display(), received.display());
    let printed = run(PAGEFERRY, &files)?.expect(0)?;
    let written = run(PAGEFERRY, &format!("{files} --output {}", page.display()))?.expect(0)?;
    ensure!(printed.stdout.trim_end() == fs::read_to_string(&page)?.trim_end() && written.stdout.is_empty(), "{written}");
    ensure!(printed.stdout.starts_with("<!DOCTYPE html>") && printed.stdout.matches("<section").count() == 1, "{printed}");
    Ok(())
}

#[test]
fn a_file_that_is_no_report_is_named() -> Result<()> {
    let directory = TempDir::new()?;
    let file = directory.path().join("file.json");
    for (content, words) in [
        ("", "is empty"),
        ("{\"schema\":1,\n\"outcome\":}", "line 2"),
        ("{\"schema\":77,\"outcome\":\"completed\"}", "schema 77"),
        ("{\"schema\":1,\"kind\":\"song\"}", "\"song\""),
    ] {
        fs::write(&file, content)?;
        let ended = run(PAGEFERRY, &format!("report {}", file.display()))?.expect(1)?;
        ensure!(ended.stderr.contains("file.json") && ended.stderr.contains(words) && ended.stdout.is_empty(), "{words}: {ended}");
    }
    let missing = run(PAGEFERRY, &format!("report {}", directory.path().join("nowhere.json").display()))?.expect(1)?;
    ensure!(missing.stderr.contains("nowhere.json") && missing.stderr.contains("No such file"), "{missing}");
    let nothing = run(PAGEFERRY, "report -")?.expect(1)?;
    ensure!(nothing.stderr.contains("standard input: is empty"), "{nothing}");
    Ok(())
}

#[test]
fn a_page_that_cannot_be_written_is_named_and_a_mistake_leaves_the_old_one() -> Result<()> {
    let directory = TempDir::new()?;
    let [good, bad, page] = ["good.json", "bad.json", "page.html"].map(|name| directory.path().join(name));
    fs::write(&good, pageferry::stats::Report::new().to_json())?;
    fs::write(&bad, "{")?;
    fs::write(&page, "old")?;
    for (output, words) in [("/dev/full", "No space left"), ("/nowhere/page.html", "No such file"), ("/tmp", "Is a directory")] {
        let ended = run(PAGEFERRY, &format!("report {} --output {output}", good.display()))?.expect(1)?;
        ensure!(ended.stderr.contains(&format!("--output {output}")) && ended.stderr.contains(words), "{ended}");
    }
    run(PAGEFERRY, &format!("report {} {} --output {}", good.display(), bad.display(), page.display()))?.expect(1)?;
    ensure!(fs::read_to_string(&page)? == "old");
    Ok(())
}

#[test]
fn wrong_use_is_told_apart() -> Result<()> {
    let directory = TempDir::new()?;
    let file = directory.path().join("file.json");
    fs::write(&file, pageferry::stats::Report::new().to_json())?;
    let before = fs::read(&file)?;
    let name = file.display();
    for (flags, words) in [
        ("report".to_owned(), "FILE"),
        ("report --pictures".to_owned(), "--pictures"),
        ("report - -".to_owned(), "only once"),
        (format!("report {name} --output {name}"), "is one of the files"),
    ] {
        let ended = run(PAGEFERRY, &flags)?.expect(2)?;
        ensure!(ended.stderr.contains(words) && ended.stdout.is_empty(), "{ended}");
    }
    ensure!(fs::read(&file)? == before);
    Ok(())
}
