//! Reading a bundle: a zip or tar archive (also one behind gzip) into [`Assets`].
//!
//! Invariant: whatever the bytes are, what is unpacked of them is bounded before it is there, and nothing but plain
//! files and folders comes out. An archive that two readers could understand differently is refused.

use std::io::{self, Cursor, Read};

use bytes::Bytes;
use zip::unstable::read::ZipIterable;

use crate::domain::NotLoadable;
use crate::domain::rejection::NotLoadableKind;

use super::assets::{Assets, Builder, MAX_ENTRIES, MAX_PATH};

/// Of a path in a message.
const SHOWN: usize = 200;
/// What a tar archive may have for each entry beside its content: headers, long names, padding.
const TAR_OVERHEAD: u64 = 2 << 10;
const BLOCK: usize = 512;
/// Of what is read at once.
const PIECE: usize = 64 << 10;

/// Unix file types (`st_mode`), as zip has them in an entry's attributes.
const FILE_TYPE: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;

pub fn read(bundle: &[u8], max_bytes: u64) -> Result<Assets, NotLoadable> {
    let is_tar = |bytes: &[u8]| bytes.get(257..262) == Some(b"ustar".as_slice());
    if bundle.starts_with(b"PK\x03\x04") || bundle.starts_with(b"PK\x05\x06") {
        zip(bundle, max_bytes)
    } else if bundle.starts_with(b"\x1f\x8b") {
        let most = max_bytes.saturating_add(MAX_ENTRIES as u64 * TAR_OVERHEAD);
        tar(&unzipped(bundle, most)?, max_bytes)
    } else if is_tar(bundle) {
        tar(bundle, max_bytes)
    } else {
        Err(bad("it is no zip and no tar archive"))
    }
}

fn bad(why: impl Into<String>) -> NotLoadable {
    NotLoadable::new(NotLoadableKind::BadBundle, format!("`assets`: {}", why.into()))
}

fn broken(error: impl std::fmt::Display) -> NotLoadable {
    bad(format!("the archive is damaged: {error}"))
}

fn too_large(max_bytes: u64) -> NotLoadable {
    bad(format!("its files have more than {max_bytes} bytes"))
}

/// Names the entry.
fn entry(name: &[u8], why: impl std::fmt::Display) -> NotLoadable {
    let name: String = String::from_utf8_lossy(&name[..name.len().min(SHOWN)])
        .chars()
        .map(|c| if c.is_control() || c == '`' { '?' } else { c })
        .collect();
    bad(format!("the entry `{name}` {why}"))
}

/// UTF-8, whatever the archive says that its names are.
fn text(name: &[u8]) -> Result<&str, NotLoadable> {
    std::str::from_utf8(name).map_err(|_| entry(name, "has a name that is not UTF-8"))
}

/// All of a file whose size is said to be `size`.
fn content(name: &[u8], size: u64, mut from: impl Read, left: u64, max: u64) -> Result<Bytes, NotLoadable> {
    if size > left {
        return Err(too_large(max));
    }
    // What an archive says of sizes is no reason to take memory.
    let mut content = Vec::with_capacity(usize::try_from(size).unwrap_or(0).min(PIECE));
    from.by_ref().take(left + 1).read_to_end(&mut content).map_err(|e| entry(name, format!("can't be read: {e}")))?;
    match content.len() as u64 {
        n if n > left => Err(too_large(max)),
        n if n != size => Err(entry(name, format!("has {n} bytes, and {size} are declared"))),
        _ => {
            content.shrink_to_fit();
            Ok(content.into())
        }
    }
}

fn zip(bundle: &[u8], max_bytes: u64) -> Result<Assets, NotLoadable> {
    let mut tree = Builder::default();
    // No index of all entries: a small archive can declare millions.
    let archive = ZipIterable::try_new(Cursor::new(bundle), zip::read::Config::default()).map_err(broken)?;
    let mut archive = archive.enforce_header_consistency(true);
    if archive.len() > MAX_ENTRIES {
        return Err(bad(format!("it has more than {MAX_ENTRIES} files and folders")));
    }
    let mut packed = 0u64;
    for found in archive.files().map_err(broken)? {
        let found = found.map_err(broken)?;
        let name = found.name_raw().to_vec();
        let path = text(&name)?;
        // Each byte is one entry's, or a small archive could be read a thousand times over.
        packed = packed.saturating_add(found.compressed_size());
        if packed > bundle.len() as u64 {
            return Err(entry(&name, "overlaps others"));
        }
        let kind = found.unix_mode().unwrap_or(0) & FILE_TYPE;
        let is_folder = path.ends_with('/');
        if kind != 0 && kind != if is_folder { FOLDER } else { REGULAR } {
            return Err(entry(&name, "is no plain file or folder"));
        }
        if found.encrypted() {
            return Err(entry(&name, "is encrypted"));
        }
        if is_folder {
            tree.add_folder(path).map_err(|e| entry(&name, e))?;
            continue;
        }
        let file = tree.add_file(path).map_err(|e| entry(&name, e))?;
        let size = found.size();
        let mut reader = Cursor::new(bundle);
        let unpacked = found.with_reader(&mut reader, zip::ZipReadOptions::new());
        let unpacked = unpacked.map_err(|e| entry(&name, format!("can't be read: {e}")))?;
        let left = max_bytes - tree.bytes();
        tree.fill(file, content(&name, size, unpacked, left, max_bytes)?);
    }
    Ok(tree.finish())
}

fn unzipped(bundle: &[u8], most: u64) -> Result<Vec<u8>, NotLoadable> {
    let mut tar = Vec::new();
    let unpacked = flate2::read::MultiGzDecoder::new(bundle);
    unpacked.take(most + 1).read_to_end(&mut tar).map_err(broken)?;
    if tar.len() as u64 > most { Err(bad(format!("it unpacks to more than {most} bytes"))) } else { Ok(tar) }
}

fn tar(bundle: &[u8], max_bytes: u64) -> Result<Assets, NotLoadable> {
    let mut tree = Builder::default();
    let mut archive = tar::Archive::new(bundle);
    for (n, found) in archive.entries().map_err(broken)?.enumerate() {
        let mut found = found.map_err(broken)?;
        // Every one of them, also those that make no node.
        if n >= MAX_ENTRIES {
            return Err(bad(format!("it has more than {MAX_ENTRIES} files and folders")));
        }
        let kind = found.header().entry_type();
        if kind.is_pax_global_extensions() {
            continue;
        }
        let name = found.path_bytes().into_owned();
        let path = text(&name)?;
        if path.len() > MAX_PATH {
            return Err(entry(&name, super::assets::BadPath::TooLong));
        }
        if is_sparse(&mut found).map_err(broken)? {
            return Err(entry(&name, "is no plain file or folder"));
        }
        if kind.is_dir() {
            tree.add_folder(path).map_err(|e| entry(&name, e))?;
        } else if kind.is_file() {
            let file = tree.add_file(path).map_err(|e| entry(&name, e))?;
            let left = max_bytes - tree.bytes();
            let size = found.size();
            tree.fill(file, content(&name, size, found, left, max_bytes)?);
        } else {
            return Err(entry(&name, "is no plain file or folder"));
        }
    }
    let rest = archive.into_inner();
    let end = &bundle[..bundle.len() - rest.len()];
    // Otherwise it was cut off between two entries.
    match end.last_chunk::<BLOCK>() {
        Some(last) if last.iter().all(|b| *b == 0) => Ok(tree.finish()),
        _ => Err(broken(io::Error::from(io::ErrorKind::UnexpectedEof))),
    }
}

/// GNU's records of a file with holes: who does not know them finds another file under another name.
fn is_sparse(entry: &mut tar::Entry<'_, impl Read>) -> io::Result<bool> {
    let Some(records) = entry.pax_extensions()? else { return Ok(false) };
    for record in records {
        if record?.key_bytes().starts_with(b"GNU.sparse") {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const MAX: u64 = 1 << 20;

    fn tarred(entries: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
        let mut out = tar::Builder::new(Vec::new());
        for (path, kind, content) in entries {
            let mut header = tar::Header::new_ustar();
            // As bytes: the library refuses to write what is tested here.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            if kind.is_symlink() || kind.is_hard_link() {
                header.set_link_name("/etc/passwd").unwrap();
            }
            header.set_cksum();
            out.append(&header, *content).unwrap();
        }
        out.into_inner().unwrap()
    }

    fn file<'a>(path: &'a str, content: &'a [u8]) -> (&'a str, tar::EntryType, &'a [u8]) {
        (path, tar::EntryType::Regular, content)
    }

    fn zipped(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (path, content) in entries {
            out.start_file(*path, zip::write::SimpleFileOptions::default()).unwrap();
            out.write_all(content).unwrap();
        }
        out.finish().unwrap().into_inner()
    }

    fn gzipped(bytes: &[u8]) -> Vec<u8> {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    }

    #[track_caller]
    fn refusal(bundle: &[u8]) -> String {
        let refused = read(bundle, MAX).expect_err("it was taken");
        assert_eq!(refused.kind, NotLoadableKind::BadBundle);
        refused.detail
    }

    #[test]
    fn the_three_forms_hold_the_same() {
        let entries = [file("a.txt", b"a"), file("b/c.txt", b"bc")];
        let tar = tarred(&entries);
        let zip = zipped(&[("a.txt", b"a"), ("b/c.txt", b"bc")]);
        for bundle in [gzipped(&tar), tar, zip] {
            let assets = read(&bundle, MAX).unwrap();
            let mut all: Vec<_> = assets.iter().collect();
            all.sort();
            assert_eq!(all, [("a.txt".into(), Bytes::from("a")), ("b/c.txt".into(), Bytes::from("bc"))]);
        }
        assert_eq!(read(&zipped(&[]), MAX).unwrap().files(), 0);
    }

    /// Two stored files, the second of which, header and all, is within the content of the first.
    fn quoting() -> Vec<u8> {
        let header = |name: u8, content: &[u8], at: Option<usize>| {
            let (signature, version) =
                if at.is_some() { (0x0201_4b50u32, &[20u8, 0, 20, 0][..]) } else { (0x0403_4b50, &[20, 0][..]) };
            let size = (content.len() as u32).to_le_bytes();
            let mut out =
                [&signature.to_le_bytes()[..], version, &[0; 8], &crc32fast::hash(content).to_le_bytes()].concat();
            out.extend([&size[..], &size, &[1, 0, 0, 0]].concat());
            if let Some(at) = at {
                out.extend([&[0; 10][..], &(at as u32).to_le_bytes()].concat());
            }
            out.push(name);
            out
        };
        let inner = vec![b'x'; 1_000];
        let second = [header(b'b', &inner, None), inner.clone()].concat();
        let first = header(b'a', &second, None);
        let index = [header(b'a', &second, Some(0)), header(b'b', &inner, Some(first.len()))].concat();
        let body = [first, second].concat();
        let (size, at) = ((index.len() as u32).to_le_bytes(), (body.len() as u32).to_le_bytes());
        [&body[..], &index, b"PK\x05\x06\0\0\0\0\x02\0\x02\0", &size, &at, &[0, 0]].concat()
    }

    #[test]
    fn each_byte_of_an_archive_is_one_entrys() {
        assert!(refusal(&quoting()).contains("`b` overlaps others"));
    }

    #[test]
    fn hostile_names_and_kinds_are_refused_by_name() {
        for path in ["../x", "a/../../x", "/etc/x", "tmp/x", "a//x", "a\\..\\x"] {
            assert!(refusal(&tarred(&[file(path, b"x")])).contains(&format!("`{path}`")), "{path}");
            assert!(refusal(&zipped(&[(path, b"x")])).contains('x'), "{path}");
        }
        use tar::EntryType as Kind;
        for kind in [Kind::Symlink, Kind::Link, Kind::Char, Kind::Block, Kind::Fifo, Kind::new(b'V')] {
            assert!(refusal(&tarred(&[("evil", kind, b"")])).contains("`evil` is no plain file"), "{kind:?}");
        }
        let mut link = zip::ZipWriter::new(Cursor::new(Vec::new()));
        link.add_symlink("evil", "/etc/passwd", zip::write::SimpleFileOptions::default()).unwrap();
        assert!(refusal(&link.finish().unwrap().into_inner()).contains("`evil` is no plain file"));
        assert!(refusal(&tarred(&[file("a", b"1"), file("a", b"2")])).contains("`a` comes twice"));
        assert!(refusal(&tarred(&[file("a", b"1"), file("./a", b"2")])).contains("`./a` comes twice"));
        let mut twice = zipped(&[("aa", b"1"), ("ab", b"2")]);
        for at in (0..twice.len() - 1).filter(|at| twice[*at..].starts_with(b"ab")).collect::<Vec<_>>() {
            twice[at + 1] = b'a';
        }
        assert!(refusal(&twice).contains("`aa` comes twice"));
        let mut sparse = tar::Builder::new(Vec::new());
        sparse.append_pax_extensions([("GNU.sparse.major", b"1".as_slice())]).unwrap();
        let mut header = tar::Header::new_ustar();
        header.set_path("holes").unwrap();
        header.set_size(0);
        header.set_cksum();
        sparse.append(&header, &b""[..]).unwrap();
        assert!(refusal(&sparse.into_inner().unwrap()).contains("`holes` is no plain file"));
        let mut latin = tarred(&[file("a", b"")]);
        latin[0] = 0xE4;
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes().copy_from_slice(&latin[..512]);
        header.set_cksum();
        latin[..512].copy_from_slice(header.as_bytes());
        assert!(refusal(&latin).contains("not UTF-8"));
    }

    #[test]
    fn bombs_end_at_the_limit() {
        let zeros = vec![0u8; (MAX + 1) as usize];
        for bundle in [zipped(&[("zeros", &zeros)]), tarred(&[file("zeros", &zeros)])] {
            assert!(refusal(&bundle).contains("more than 1048576 bytes"));
        }
        assert!(refusal(&zipped(&[("a", &zeros[1..]), ("b", b"1")])).contains("more than 1048576 bytes"));
        let most = MAX + MAX_ENTRIES as u64 * TAR_OVERHEAD;
        assert!(refusal(&gzipped(&vec![0u8; most as usize + 1])).contains("unpacks to more than"));
        // Declared small, and large: what comes out counts.
        for declared in [1u32, u32::MAX] {
            let mut liar = zipped(&[("zeros", &zeros[..1000])]);
            let central = liar.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
            liar[22..26].copy_from_slice(&declared.to_le_bytes());
            liar[central + 24..central + 28].copy_from_slice(&declared.to_le_bytes());
            refusal(&liar);
        }
        let names: Vec<String> = (0..=MAX_ENTRIES).map(|n| n.to_string()).collect();
        let entries: Vec<_> = names.iter().map(|name| file(name, b"")).collect();
        assert!(refusal(&tarred(&entries)).contains("more than 10000"));
        let entries: Vec<_> = names.iter().map(|name| (name.as_str(), b"".as_slice())).collect();
        assert!(refusal(&zipped(&entries)).contains("more than 10000"));
        // Folders that nobody named count as well.
        let deep: Vec<String> = (0..400).map(|n| format!("{n}{}", "/d".repeat(31))).collect();
        let entries: Vec<_> = deep.iter().map(|name| file(name, b"")).collect();
        assert!(refusal(&tarred(&entries)).contains("one more than the 10000"));
    }

    #[test]
    fn headers_that_disagree_are_refused() {
        let honest = zipped(&[("name-a", b"content")]);
        let central = honest.windows(4).position(|w| w == b"PK\x01\x02").unwrap();
        for at in [central + 46, central + 24, central + 16] {
            let mut liar = honest.clone();
            liar[at] ^= 1;
            refusal(&liar);
        }
    }

    #[test]
    fn every_cut_archive_is_refused() {
        let (tar, zip) = (tarred(&[file("a", b"1"), file("b", b"2")]), zipped(&[("a", b"1"), ("b", b"2")]));
        // Behind its first block of zeros a tar archive may end.
        for len in 0..tar.len() - BLOCK {
            refusal(&tar[..len]);
        }
        for len in 0..zip.len() {
            refusal(&zip[..len]);
        }
    }

    /// Whatever the bytes are, there is an answer, and what comes out is within its bounds.
    #[test]
    fn mutated_archives_never_panic() {
        let contents: [(&str, &[u8]); 3] = [("a.txt", b"aaaaaaaaaaaaaaaaaaaaa"), ("b/c/d", b"bc"), ("b/e", b"")];
        let tar = tarred(&contents.map(|(path, content)| file(path, content)));
        let seeds = [zipped(&contents), gzipped(&tar), tar];
        let mut state = 0x9E37_79B9_7F4A_7C15u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % below.max(1) as u64) as usize
        };
        let (mut taken, mut refused) = (0, 0);
        for round in 0..20_000 {
            let mut bundle = seeds[round % seeds.len()].clone();
            for _ in 0..=random(4) {
                let at = random(bundle.len());
                match random(5) {
                    0 => bundle[at] = random(256) as u8,
                    1 => bundle[at] ^= 1 << random(8),
                    2 => bundle.truncate(at.max(20)),
                    3 => {
                        let end = (at + random(64)).min(bundle.len());
                        bundle.extend_from_within(at..end);
                    }
                    _ => {
                        let end = (at + 4).min(bundle.len());
                        bundle[at..end].fill(0xFF);
                    }
                }
            }
            match read(&bundle, 64) {
                Ok(assets) => {
                    taken += 1;
                    assert!(assets.bytes() <= 64 && assets.iter().count() as u64 == assets.files());
                    assert!(assets.iter().all(|(path, _)| !path.starts_with('/') && !path.contains("..")));
                }
                Err(_) => refused += 1,
            }
        }
        assert!(taken > 0 && refused > 0, "{taken} taken, {refused} refused");
    }
}
