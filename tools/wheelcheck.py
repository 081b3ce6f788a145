"Does the wheel hold every file of the package that git knows, and nothing else?"
import subprocess, sys
from pathlib import Path
from zipfile import ZipFile

def tracked(root):
    "Files of the package: git's list, or the folder's where there is no git"
    try:
        out = subprocess.run(['git', 'ls-files', '-z', '-co', '--exclude-standard', 'pla_nb'], cwd=root, capture_output=True, check=True).stdout
        return {o for o in out.decode().split('\0') if o and (root/o).exists()}
    except (OSError, subprocess.CalledProcessError):
        return {p.relative_to(root).as_posix() for p in (root/'pla_nb').rglob('*') if p.is_file() and '__pycache__' not in p.parts}

def check(wheel):
    "Problems, one a line"
    root = Path(__file__).resolve().parent.parent
    names = {o for o in ZipFile(wheel).namelist() if '.dist-info/' not in o}
    want = tracked(root)
    return [f'not in the wheel: {o}' for o in sorted(want-names)] + [f'in the wheel only: {o}' for o in sorted(names-want)]

if __name__=='__main__':
    bad = check(sys.argv[1])
    size = Path(sys.argv[1]).stat().st_size/1e6
    print('\n'.join(bad) or f'{Path(sys.argv[1]).name}: {size:.1f} MB, complete')
    sys.exit(bool(bad))
