"Check every link of the built site: files, anchors and pictures must be there; of links to other hosts only the form is checked."
import re, sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit, unquote

LINKS = {'href', 'src', 'poster', 'data-src'}

class Page(HTMLParser):
    "The anchors and links of one page"
    def __init__(self, text):
        super().__init__()
        self.ids,self.links = {'', 'top'},[]
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for k,v in attrs:
            if not v: continue
            if k=='id' or (tag=='a' and k=='name'): self.ids.add(v)
            elif k in LINKS: self.links.append(v)
            elif k=='srcset': self.links += [o.split()[0] for o in v.split(', ')]

def bad_external(url):
    "Why an external link cannot be right, or None"
    u = urlsplit(url)
    if u.scheme=='mailto': return None if '@' in u.path else 'no address'
    if u.scheme not in ('http', 'https', ''): return f'unknown scheme {u.scheme}'
    if not re.fullmatch(r'[\w-]+(\.[\w-]+)+(:\d+)?', u.netloc): return f'not a host: {u.netloc!r}'
    if re.search(r'\s', url): return 'a space in it'

def target(site, page, url):
    "The file a link of `page` leads to"
    path = unquote(urlsplit(url).path)
    p = site/path.lstrip('/') if path.startswith('/') else page.parent/path
    if not path: p = page
    return p/'index.html' if p.is_dir() else p

def check(
    site:Path, # Folder with the built pages
    host:str='' # Address the site will have; links to it are links into the site
)->tuple:      # Problems, number of links
    site = Path(site).resolve()
    pages = {p.resolve():Page(p.read_text(encoding='utf-8')) for p in sorted(site.rglob('*.html'))}
    bad,n = [],0
    for p,page in pages.items():
        for url in page.links:
            n += 1
            where = f'{p.relative_to(site)}: {url[:120]}'
            if host and url.startswith(host): url = '/'+url[len(host):].lstrip('/')
            if url.startswith('data:'): continue
            if urlsplit(url).scheme or url.startswith('//'):
                if why:=bad_external(url): bad.append(f'{where} ({why})')
                continue
            t = target(site, p, url).resolve()
            frag = unquote(urlsplit(url).fragment)
            if not t.is_file(): bad.append(f'{where} (no such file)')
            elif frag and t in pages and frag not in pages[t].ids: bad.append(f'{where} (no such anchor)')
    if not pages: bad.append(f'no pages in {site}')
    return bad,n

def check_md(fn):
    "The same for the local links and pictures of one markdown file"
    txt = re.sub(r'^```.*?^```', '', fn.read_text(encoding='utf-8'), flags=re.M|re.S)
    urls = re.findall(r'\]\(([^)\s]+)', txt) + re.findall(r'(?:src|href)="([^"]+)"', txt)
    local = [o for o in urls if not urlsplit(o).scheme and not o.startswith('#')]
    return [f'{fn.name}: {o} (no such file)' for o in local if not (fn.parent/unquote(urlsplit(o).path)).exists()], len(local)

if __name__=='__main__':
    from nbdev.config import get_config
    cfg = get_config()
    bad,n = check(cfg.doc_path, cfg.doc_host.rstrip('/')+'/'+cfg.doc_baseurl.strip('/'))
    md = cfg.config_path/'README.md'
    if md.exists():
        b,k = check_md(md)
        bad,n = bad+b,n+k
    print('\n'.join(bad) or f'{n} links, all well')
    sys.exit(bool(bad))
