//! A command that works on files through the standard library: reads what is at `/`, writes in `/tmp`.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};

fn main() -> std::io::Result<()> {
    print!("{}", fs::read_to_string("/page.html")?);
    println!("{:?}", File::create("/new").map(drop).map_err(|e| e.kind()));

    fs::create_dir_all("/tmp/a/b")?;
    let mut file = OpenOptions::new().read(true).write(true).create_new(true).open("/tmp/a/b/c")?;
    file.write_all(b"hello, files")?;
    file.seek(SeekFrom::Start(7))?;
    let mut word = String::new();
    file.read_to_string(&mut word)?;
    file.set_len(5)?;
    file.sync_all()?;
    println!("{word} {}", file.metadata()?.len());
    OpenOptions::new().append(true).open("/tmp/a/b/c")?.write_all(b"!")?;
    println!("{}", fs::copy("/tmp/a/b/c", "/tmp/copy")?);
    fs::rename("/tmp/copy", "/tmp/a/moved")?;

    let mut names: Vec<_> = fs::read_dir("/tmp/a")?
        .map(|entry| entry.map(|entry| (entry.file_name(), entry.path().is_dir())))
        .collect::<Result<_, _>>()?;
    names.sort();
    println!("{names:?}");
    println!("{:?}", fs::remove_dir("/tmp/a").map_err(|e| e.raw_os_error()));
    fs::remove_file("/tmp/a/moved")?;
    fs::remove_file("/tmp/a/b/c")?;
    fs::remove_dir("/tmp/a/b")?;
    fs::remove_dir("/tmp/a")?;
    println!("{}", fs::read_dir("/tmp")?.count());
    Ok(())
}
