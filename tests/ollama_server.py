"""A test server that speaks Ollama's HTTP protocol on loopback, so that the real `ollama` client is driven over a real socket.

    with OllamaServer(Canned(answer)) as s: Ollama('tiny', host=s.host)

What answers is a backend, `backend(prompt, schema, options) -> (text, tokens)`: the embedded LLM (`Embedded`), a function, or a constant (`Canned`).
`s.faults` makes the next chat requests go wrong: each is a function `fault(handler, text)` that may write what it likes; None answers well.
A stalled request waits for an event of the test, so no test sleeps.
"""
import hashlib, json, socket, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# What a Modelfile would call MESSAGE: a base model needs to see answers before it can give one.
FEW_SHOT = '''Class name: "teapot"
Answer: {"descriptions": ["A round pot with a curved spout, a handle and a small lid.", "A shiny white china vessel for tea, similar to a jug."]}

Class name: "fox"
Answer: {"descriptions": ["A slim orange animal with pointed ears and a white throat.", "A furry animal with a long bushy tail, similar to a small dog."]}

'''

def sentences(n, start=0):
    "n different good descriptions"
    parts = ['red hull', 'blue roof', 'green door', 'white wall', 'black wheel', 'gray tower', 'brown handle', 'yellow sail', 'pink petal', 'silver blade']
    return [f'A {parts[(start+i)%10]} with {w} and a long shadow in the grass.' for i,w in zip(range(n), ['two round knobs', 'three thin rods', 'four square panels', 'five small dots', 'six long stripes', 'one curved edge', 'many fine lines', 'some flat stones', 'bright metal rings', 'dark wooden legs']*10)]

def good(prompt, schema, options):
    "A usable answer to whatever schema asks for"
    keys = schema['properties'] if schema else {}
    text = json.dumps({k: sentences(v['minItems'], i) for i,(k,v) in enumerate(keys.items())}) if keys else 'A red hull with two masts.'
    return text, len(text.split())

class Canned:
    "Always the same text"
    def __init__(self, text): self.text = text
    def __call__(self, prompt, schema, options): return self.text, len(str(self.text).split())

class Embedded:
    "The embedded LLM, constrained by the schema of the request"
    def __init__(self, llm): self.llm = llm; llm.prepare()
    def __call__(self, prompt, schema, options):
        name = next((o for o in prompt.splitlines() if o[:1] == '"'), '"thing"')
        request = dict(prompt=f'{FEW_SHOT}Class name: {name}\nAnswer:', max_tokens=min(int(options.get('num_predict', 300)), 400), temperature=options.get('temperature', .8), seed=options.get('seed', 0))
        before = self.llm.tokens
        text = self.llm._complete(request | (dict(json_schema=schema) if schema else dict(stop=['\n'])))
        return text, self.llm.tokens-before

class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *a): pass

    def reply(self, data, status=200):
        "One JSON object"
        body = json.dumps(data).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json; charset=utf-8')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def start_stream(self):
        self.send_response(200)
        self.send_header('Content-Type', 'application/x-ndjson')
        self.send_header('Transfer-Encoding', 'chunked')
        self.end_headers()

    def chunk(self, data):
        "One line of a stream, given as an object or as raw bytes"
        b = data if isinstance(data, bytes) else json.dumps(data).encode()+b'\n'
        self.wfile.write(f'{len(b):x}\r\n'.encode()+b+b'\r\n')
        self.wfile.flush()

    def end_stream(self): self.wfile.write(b'0\r\n\r\n')

    def drop(self):
        "Break the connection as a killed server does: with a reset"
        import struct
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def do_HEAD(self): self.do_GET()
    def do_GET(self):
        s = self.server.owner
        if self.path == '/api/version': return self.reply(dict(version='0.12.0'))
        if self.path == '/api/tags': return self.reply(dict(models=[entry(m) for m in s.models]))
        self.reply(dict(error='not found'), 404)

    def do_POST(self):
        s = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers.get('Content-Length', 0))) or b'{}')
        with s.lock: s.requests.append((self.path, body))
        try: {'/api/show': self.show, '/api/pull': self.pull, '/api/chat': self.chat, '/api/generate': self.generate}[self.path](s, body)
        except KeyError: self.reply(dict(error='not found'), 404)
        except (BrokenPipeError, ConnectionError, OSError): self.close_connection = True

    def known(self, s, body):
        "Answer 404 as Ollama does unless the model is there"
        if tag(body['model']) in s.models: return True
        self.reply(dict(error=f"model '{body['model']}' not found"), 404)

    def show(self, s, body):
        if self.known(s, body): self.reply(dict(details=dict(family='gemma3', format='gguf'), model_info={'general.architecture': 'gemma3'}, **({} if (can := s.capabilities.get(tag(body['model']), ['completion'])) is None else dict(capabilities=can))))

    def pull(self, s, body):
        "Progress lines for two layers; then the model is there"
        name = tag(body['model'])
        if name not in s.pullable: return self.reply(dict(error='pull model manifest: file does not exist'), 500)
        lines = [dict(status='pulling manifest')]
        for layer,size in (('sha256:'+'a'*64, 1000), ('sha256:'+'b'*64, 50)):
            lines += [dict(status='pulling '+layer[7:19], digest=layer, total=size, completed=size*i//4) for i in range(5)]
        lines += [dict(status='verifying sha256 digest'), dict(status='success')]
        s.models.append(name)
        if body.get('stream', True) is False: return self.reply(lines[-1])
        self.start_stream()
        for o in lines: self.chunk(o)
        self.end_stream()

    def chat(self, s, body):
        if self.known(s, body): self.answer(s, body, body['messages'][-1]['content'], lambda text: dict(message=dict(role='assistant', content=text)))

    def generate(self, s, body):
        if self.known(s, body): self.answer(s, body, body['prompt'], lambda text: dict(response=text))

    def answer(self, s, body, prompt, wrap):
        "Ask the backend, unless a fault is due; stream the text unless told not to"
        fault = s.next_fault()
        start = time.perf_counter()
        if fault and not getattr(fault, 'wants_text', False): return fault(self, s)
        text,tokens = s.backend(prompt, body.get('format'), body.get('options') or {})
        if fault: return fault(self, s, text)
        ns = int((time.perf_counter()-start)*1e9)
        head = dict(model=body['model'], created_at='2026-01-01T00:00:00Z')
        last = head | wrap('') | dict(done=True, done_reason='stop', total_duration=ns, eval_count=tokens, eval_duration=ns, prompt_eval_count=1, prompt_eval_duration=1)
        if body.get('stream', True) is False: return self.reply(last | wrap(text))
        self.start_stream()
        for i in range(0, len(text), 40): self.chunk(head | wrap(text[i:i+40]) | dict(done=False))
        self.chunk(last)
        self.end_stream()

def tag(model): return model if ':' in model else model+':latest'
def entry(model): return dict(name=model, model=model, modified_at='2026-01-01T00:00:00Z', size=253_000_000, digest=hashlib.sha256(model.encode()).hexdigest(), details=dict(family='gemma3', format='gguf'))

class Quiet(ThreadingHTTPServer):
    daemon_threads = True
    def handle_error(self, request, address): pass # clients that give up are what is being tested

class OllamaServer:
    "The server, in threads of this process, on a free loopback port"
    def __init__(self, backend=good, models=('tiny:latest',), pullable=(), port=0):
        self.backend,self.models,self.pullable = backend,[tag(m) for m in models],[tag(m) for m in pullable]
        self.capabilities = {} # model -> what it can do, if not chat alone; None: not said, as by an old server
        self.faults,self.requests,self.lock,self.release = [],[],threading.Lock(),threading.Event()
        self.http = Quiet(('127.0.0.1', port), Handler)
        self.http.owner = self
        self.port = self.http.server_address[1]
        self.host = f'http://127.0.0.1:{self.port}'
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs=dict(poll_interval=.01), daemon=True)
    def __enter__(self):
        self.thread.start()
        return self
    def __exit__(self, *a): self.stop()
    def stop(self):
        self.release.set()
        self.http.shutdown()
        self.http.server_close()
    def next_fault(self):
        with self.lock: return self.faults.pop(0) if self.faults else None
    @property
    def asked(self): return [b for p,b in self.requests if p in ('/api/chat', '/api/generate')]

def _with_text(f): f.wants_text = True; return f

# Faults

def status(code, message='something broke'):
    "An HTTP error, as JSON"
    return lambda h, s: h.reply(dict(error=message), code)

def stall(h, s):
    "Say nothing until the test is over"
    s.release.wait()
    h.close_connection = True

def stall_midway(h, s):
    "A first piece, then nothing until the test is over"
    h.start_stream()
    h.chunk(dict(model='tiny', message=dict(role='assistant', content='{"descr'), done=False))
    stall(h, s)

@_with_text
def drop_midway(h, s, text):
    "Half the answer, then a reset"
    h.start_stream()
    h.chunk(dict(model='tiny', message=dict(role='assistant', content=text[:len(text)//2]), done=False))
    h.drop()

@_with_text
def end_early(h, s, text):
    "Half the answer, then a proper end of the stream without `done`"
    h.start_stream()
    h.chunk(dict(model='tiny', message=dict(role='assistant', content=text[:len(text)//2]), done=False))
    h.end_stream()

def raw_bytes(data):
    "Bytes where a line of JSON should be"
    def f(h, s):
        h.start_stream()
        h.chunk(data)
        h.end_stream()
    return f

def error_midway(h, s):
    "What Ollama sends when its runner crashes during an answer"
    h.start_stream()
    h.chunk(dict(model='tiny', message=dict(role='assistant', content='{"desc'), done=False))
    h.chunk(dict(error='llama runner process has terminated'))
    h.end_stream()

def redirect(to):
    def f(h, s):
        h.send_response(307)
        h.send_header('Location', to)
        h.send_header('Content-Length', '0')
        h.end_headers()
    return f

def die(h, s):
    "The server process is gone: this connection is reset and no other is accepted"
    threading.Thread(target=s.http.shutdown, daemon=True).start()
    s.http.socket.close()
    h.drop()

if __name__ == '__main__':
    from pla_nb.describe import EmbeddedLLM
    with OllamaServer(Embedded(EmbeddedLLM())) as s:
        print(f'OLLAMA_HOST={s.host}', flush=True)
        s.thread.join()
