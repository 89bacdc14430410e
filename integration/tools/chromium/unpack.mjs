// Unpacks the browser of the npm package into DIR: chrome, what it draws with, and DIR/lib and DIR/fonts.
//
//   node unpack.mjs PACKAGE/bin DIR
import { createReadStream, createWriteStream } from "node:fs";
import { chmod, mkdir, rm } from "node:fs/promises";
import { execFileSync } from "node:child_process";
import { pipeline } from "node:stream/promises";
import { createBrotliDecompress } from "node:zlib";

const [from, to] = process.argv.slice(2);
const open = (name) => [createReadStream(`${from}/${name}.br`), createBrotliDecompress()];
await mkdir(to, { recursive: true });
await pipeline(...open("chromium"), createWriteStream(`${to}/chrome`));
await chmod(`${to}/chrome`, 0o755);
for (const name of ["al2023.tar", "fonts.tar", "swiftshader.tar"]) {
  // Not by a pipe: tar may leave at the archive's end, before the padding behind it is written.
  const archive = `${to}/${name}`;
  await pipeline(...open(name), createWriteStream(archive));
  execFileSync("tar", ["-x", "-f", archive, "-C", to], { stdio: "inherit" });
  await rm(archive);
}
